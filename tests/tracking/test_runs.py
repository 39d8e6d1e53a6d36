from __future__ import annotations

import json
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.artifacts import Manifest
from lightning_dadpo.tracking import runs
from lightning_dadpo.tracking.runs import record_stage

MANIFEST = Manifest(
    kind="pairs",
    made_from={"teacher": "abc", "rejected_from": "initial"},
    counts={"pairs": 7, "dropped": {"cut": 2}},
    results={"said": "<script>alert(1)</script>"},
    versions={"torch": "2"},
    seconds=1.5,
)


def record(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "manifest.json").write_text(json.dumps(asdict(MANIFEST)))
    record_stage("trial", "pairs of trial", "pairs-1f", tmp_path / "pairs", MANIFEST, tmp_path / "runs")


def test_one_finished_offline_run_and_nobody_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []
    plain = runs.start_run

    def watched(*mode: Any, **arguments: Any) -> Any:
        started.append(plain(*mode, **arguments))
        return started[-1]

    monkeypatch.setattr(runs, "start_run", watched)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        record(tmp_path)
        with pytest.raises(BlockingIOError):
            server.accept()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    (run,) = started
    assert (run.group, run.name, run.job_type, run.id) == ("trial", "pairs of trial", "pairs", "pairs-1f")
    assert dict(run.config) == {
        "folder": str(tmp_path / "pairs"),
        "made_from": {"teacher": "abc", "rejected_from": "initial"},
        "versions": {"torch": "2"},
    }
    assert run._is_finished
    sys.modules["wandb"].teardown()  # its service may still be writing
    (folder,) = (tmp_path / "runs" / "wandb").glob("offline-run-*-pairs-1f")
    stored = (folder / "run-pairs-1f.wandb").read_bytes()
    for expected in (b"trial", b"pairs of trial", b"rejected_from", b"seconds", b"<script>alert(1)</script>"):
        assert expected in stored or expected.replace(b"<", b"\\u003c").replace(b">", b"\\u003e") in stored
    assert not [path for path in folder.rglob("*") if path.suffix in (".html", ".py", ".patch")]


def test_disabled_means_that_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(runs, "start_run", lambda *_, **__: pytest.fail("started"))
    record(tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("mode", ["offline", "nonsense"])
def test_trouble_is_one_line_and_no_error(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no room\nand a long story")

    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(runs, "start_run", refused)
    record(tmp_path)
    reason = "no room" if mode == "offline" else "WANDB_MODE=nonsense: expected online, offline or disabled"
    assert capsys.readouterr().out == f"wandb: stage pairs of trial was not recorded ({reason})\n"
