"""A name leads to a whole checkpoint at every moment: files, folders, and who may write there."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.training import checkpoint_files
from lightning_dadpo.training.checkpoint_files import WholeFiles, free_version, lead_to
from lightning_dadpo.training.checkpoints import BestCheckpoint, LastCheckpoint, checkpoint_folder
from lightning_dadpo.training.lock import hold_folder
from tests.commands import python_code
from tests.scoring.example import trainer


def content(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("event", ["half a file last.ckpt", "before a rename last.ckpt"])
def test_a_kill_during_the_writing_leaves_the_previous_checkpoint_whole(event: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 1}, path)
    code = (
        "import sys; from pathlib import Path; from tests.faults import Fault, arm\n"
        "from lightning_dadpo.training.checkpoint_files import WholeFiles\n"
        "arm(Fault(sys.argv[2], 1), Path(sys.argv[1]).parent)\n"
        "WholeFiles().save_checkpoint({'step': 2}, sys.argv[1])\n"
    )
    done = python_code(code, str(path), event)
    assert done.returncode == -signal.SIGKILL
    assert content(path) == {"step": 1}
    WholeFiles().save_checkpoint({"step": 3}, path)
    assert content(path) == {"step": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 1}, path)

    def full(content: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_files.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        WholeFiles().save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert content(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def write(version: Path, step: int) -> Path:
    """What DeepSpeed makes: a folder in a folder, and a file that says which."""
    (version / "checkpoint").mkdir(parents=True)
    (version / "checkpoint" / "part.pt").write_text(str(step))
    return version


def step_behind(link: Path) -> int:
    return int((link / "checkpoint" / "part.pt").read_text())


def test_folders_take_turns_and_the_old_one_goes(tmp_path: Path) -> None:
    link = tmp_path / "last.ckpt"
    for step in range(1, 5):
        lead_to(link, write(free_version(link), step))
        assert step_behind(link) == step
        assert len(list(tmp_path.iterdir())) == 2  # the name, and what it leads to
    assert link.is_symlink()


@pytest.mark.parametrize(
    "killed", ["while a part is written", "before the name is moved", "before the old one is gone"]
)
def test_a_kill_between_two_folders_leaves_the_name_whole(
    killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "last.ckpt"
    lead_to(link, write(free_version(link), 1))
    version = write(free_version(link), 2)
    if killed == "while a part is written":
        (version / "checkpoint" / "part.pt").unlink()
    elif killed == "before the name is moved":
        (tmp_path / ".last.ckpt.new").symlink_to(version.name)
    else:
        monkeypatch.setattr(checkpoint_files.shutil, "rmtree", lambda *_, **__: None)
        lead_to(link, version)
        monkeypatch.undo()
    assert step_behind(link) == (2 if killed == "before the old one is gone" else 1)
    # the same step once more, as a run does that goes on from there
    lead_to(link, write(free_version(link), 3))
    assert step_behind(link) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_last_is_searched_where_it_is_written_whatever_the_logger_says(tmp_path: Path) -> None:
    """Planted before: Lightning looked into the logger's folder, found nothing and began anew in silence."""
    loop = trainer(tmp_path, [LastCheckpoint(), BestCheckpoint()], logger=CSVLogger(tmp_path))
    folder = Path(checkpoint_folder(loop))
    link = folder / "last.ckpt"
    folder.mkdir()
    lead_to(link, write(free_version(link), 1))
    (folder / "best.ckpt").touch()
    for callback in loop.checkpoint_callbacks:
        assert callback._find_last_checkpoints(loop) == {str(link)}  # type: ignore[attr-defined]
    chosen = loop._checkpoint_connector._parse_ckpt_path(TrainerFn.FITTING, "last", True, True)
    assert chosen == str(link)


def test_only_one_process_trains_in_a_folder_and_a_kill_gives_it_free(tmp_path: Path) -> None:
    folder, loop = tmp_path / "checkpoints", trainer(tmp_path)
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        hold_folder(loop, str(folder))
        worker = os.fork()  # as a loader's: it must not keep what the training held
        if worker:
            os.write(say, str(worker).encode())
        signal.pause()
    worker = int(os.read(ready, 100))
    try:
        with pytest.raises(ConfigError, match=f"another training is at work there .process {child} on "):
            hold_folder(loop, str(folder))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        held = hold_folder(loop, str(folder))
        assert held is not None
        os.close(held)
    finally:
        for process in (child, worker):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def test_every_n_steps_of_zero_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="every_n_steps 0: expected at least 1"):
        LastCheckpoint(every_n_steps=0)
