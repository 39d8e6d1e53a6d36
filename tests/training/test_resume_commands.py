"""D4 through the real command line: killed, asked to go, begun again with the same command; one process and two."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_dadpo.cli.curves import join_curves
from tests.faults import Fault
from tests.forks import Ended, Forks, slurm, torchrun
from tests.scoring.example import Setup, make_pairs, make_setup, scored, write_artifact
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "configs" / name for name in ("trainer/default.yaml", "loss/dadpo.yaml", "recipes/preference.yaml")]
TERM = int(signal.SIGTERM)
MICRO_BATCHES = 3
"""Of a step of 6 pairs in one process, with 60 tokens each at most."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("models"), dropout=0.2)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@dataclass
class Training:
    """One folder and the command that trains there."""

    forks: Forks
    setup: Setup
    folder: Path
    trainer: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def command(self, subcommand: str = "fit", checkpoint: str | None = "last") -> list[str]:
        places = {"train": "train", "validation": "validation", "test": "validation"}
        data = {name: {"folder": str(self.setup.pairs), "split": split} for name, split in places.items()}
        anchors = {"reference": self.setup.reference_scores, "teacher": self.setup.teacher_scores}
        model = {"student": {"path": str(self.setup.student)}}
        model |= {"anchors": {name: {"scores": str(scores)} for name, scores in anchors.items()}}
        model |= {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}}
        trainer = {
            "accelerator": "cpu",
            "default_root_dir": str(self.folder),
            "max_epochs": 2,
            "val_check_interval": 2,  # behind a step, and between the micro-batches of one
            "callbacks": [
                {"class_path": "LastCheckpoint", "init_args": {"every_n_steps": 2}},
                {"class_path": "BestCheckpoint"},
            ],
        }
        settings = {
            "model": {"init_args": model | self.model},
            "data": {"init_args": data | {"pairs_per_step": 6, "tokens_per_batch": 60, "workers": 1} | self.data},
            "trainer": trainer | self.trainer,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / "own.yaml"
        own.write_text(yaml.safe_dump(settings), "utf-8")
        files = [part for file in (*FILES, own) for part in ("-c", str(file))]
        return [subcommand, *files, *(["--ckpt_path", checkpoint] if checkpoint else [])]

    def fit(
        self,
        *faults: Fault | None,
        environments: Sequence[dict[str, str]] = ({},),
        checkpoint: str | None = "last",
    ) -> Ended:
        chosen = faults or [None] * len(environments)
        return self.forks.run(
            *self.command(checkpoint=checkpoint), cwd=self.folder, faults=chosen, environments=environments
        )

    def curves(self) -> list[dict[str, str]]:
        """What all attempts have logged, but the speed."""
        attempts = self.folder.glob("lightning_logs/version_*/metrics.csv")
        join_curves(sorted(attempts, key=lambda path: int(path.parent.name.split("_")[1])), self.folder / "joined.csv")
        with (self.folder / "joined.csv").open() as file:
            rows = list(csv.DictReader(file))
        speed = ("train/tokens_per_second", "train/examples_per_second", "train/peak_memory_gib", "train/padding_share")
        return [{name: row[name] for name in sorted(row) if row[name] and name not in speed} for row in rows]

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(self.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        return loaded


def same_end(killed: Training, whole: Training) -> None:
    """Curves, weights and moments, bit by bit."""
    assert killed.curves() == whole.curves()
    for name in ("last", "best"):
        ours, theirs = killed.checkpoint(name), whole.checkpoint(name)
        assert ours["global_step"] == theirs["global_step"]
        assert same(ours["state_dict"], theirs["state_dict"])
    assert same(killed.checkpoint()["optimizer_states"], whole.checkpoint()["optimizer_states"])


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


@pytest.fixture(scope="module")
def whole(forks: Forks, setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = Training(forks, setup, tmp_path_factory.mktemp("whole"))
    ended = training.fit(checkpoint=None)
    assert ended.status == 0, ended.errors
    assert f"{MICRO_BATCHES} micro-batches a step" in ended.outputs[0]
    return training


KILLS = [
    Fault("micro-batch", 2),  # before there is any checkpoint
    Fault("half a file last.ckpt", 1),
    Fault("half a file last.ckpt", 2),
    Fault("before a rename last.ckpt", 1),
    Fault("validation", 3),
    Fault("half a file best.ckpt", 1),
    Fault("after a rename best.ckpt", 1),
    Fault("micro-batch", 2),
    Fault("after a rename last.ckpt", 1),
    Fault("micro-batch", 5),
]


def test_D4_killed_again_and_again_in_one_process(forks: Forks, whole: Training, tmp_path: Path) -> None:
    killed = Training(forks, whole.setup, tmp_path)
    begun = "--ckpt_path last: no checkpoint in {} yet, so training begins"
    for kill in KILLS:
        first = not (tmp_path / "checkpoints" / "last.ckpt").exists()
        ended = killed.fit(kill)
        assert ended.status == -int(signal.SIGKILL), (kill, ended)
        assert (begun.format(tmp_path / "checkpoints") in ended.outputs[0]) == first
    ended = killed.fit()
    assert ended.status == 0, ended.errors
    same_end(killed, whole)


def two(training: Training) -> Training:
    """The same in two processes."""
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy"}
    strategy["init_args"] = {"process_group_backend": "gloo", "broadcast_buffers": False}  # type: ignore[assignment]
    training.trainer = {"devices": 2, "strategy": strategy}
    training.data = {"tokens_per_batch": 40}  # two micro-batches a step on each rank
    return training


def test_D4_two_processes_killed_asked_to_go_and_queued_again(forks: Forks, setup: Setup, tmp_path: Path) -> None:
    """Whoever is killed or asked: all go, behind the same step; under SLURM the job is queued again once."""
    whole = two(Training(forks, setup, tmp_path / "whole"))
    assert whole.fit(environments=torchrun(2)).statuses == [0, 0]
    killed = two(Training(forks, setup, tmp_path / "killed"))
    for kills in (
        [Fault("micro-batch", 8), None],
        [None, Fault("micro-batch", 2)],
        [Fault("half a file last.ckpt", 1)],
    ):
        ended = killed.fit(*kills, *[None] * (2 - len(kills)), environments=torchrun(2))
        assert -int(signal.SIGKILL) in ended.statuses, ended
    for faults in ([Fault("micro-batch", 1, TERM), None], [Fault("micro-batch", 2, TERM)] * 2):
        ended = killed.fit(*faults, environments=torchrun(2))
        assert ended.statuses == [143, 143], ended
        assert sum(output.count("asked to stop") for output in ended.outputs) == 1
    assert killed.fit(environments=torchrun(2)).statuses == [0, 0]
    same_end(killed, whole)

    queued = two(Training(forks, setup, tmp_path / "queued"))
    ended = queued.fit(None, Fault("micro-batch", 3, int(signal.SIGUSR1)), environments=srun(tmp_path, 2))
    assert ended.statuses == [143, 143], ended
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert "asked to stop: the checkpoint of step 2 is in" in ended.outputs[0]
    assert queued.fit(environments=srun(tmp_path, 2)).statuses == [0, 0]
    same_end(queued, whole)


def srun(folder: Path, ranks: int) -> list[dict[str, str]]:
    """SLURM, with an `scontrol` that writes down what it was asked."""
    control = folder / "scontrol"
    control.write_text(f'#!/bin/sh\necho "$@" >> {folder / "asked"}\n')
    control.chmod(0o755)
    return slurm(ranks, PATH=f"{folder}:{os.environ['PATH']}")


def test_sigterm_and_ctrl_c_in_the_middle_of_a_step_end_the_run_behind_it(
    forks: Forks, whole: Training, tmp_path: Path
) -> None:
    asked = Training(forks, whole.setup, tmp_path)
    ended = asked.fit(Fault("micro-batch", 2, TERM))
    assert ended.status == 143
    assert asked.checkpoint()["global_step"] == 1
    said = [line for line in ended.outputs[0].splitlines() if "asked to stop" in line]
    assert said == [f"asked to stop: the checkpoint of step 1 is in {tmp_path / 'checkpoints'}"]
    assert "Traceback" not in ended.errors[0]
    ctrl_c = Fault("validation", 1, int(signal.SIGINT))  # asked while it validates: behind the validation
    assert asked.fit(ctrl_c).status == 143
    assert asked.fit().status == 0
    same_end(asked, whole)


def refused(ended: Ended) -> str:
    assert ended.status == 2, ended
    (line,) = (line for line in ended.errors[0].splitlines() if "broadcast_buffers" not in line)  # torch's own
    return line


def test_D4_what_would_be_another_run_is_refused_in_one_line_with_both_values(
    forks: Forks, setup: Setup, tmp_path: Path
) -> None:
    killed = Training(forks, setup, tmp_path / "run")
    assert killed.fit(Fault("micro-batch", 8)).status < 0
    before = killed.checkpoint()

    def changed(**changes: Any) -> str:
        other = Training(forks, setup, tmp_path / "run", **changes)
        return refused(other.fit())

    pairs = make_pairs(16)
    for pair in pairs:  # the same lengths, other tokens
        pair.prompt_token_ids[-1] = (pair.prompt_token_ids[-1] + 1) % 200 + 3
    other_pairs = write_artifact(tmp_path / "pairs", "pairs", [*pairs, *make_pairs(7, "validation")])
    same_shape = tiny_model(tmp_path / "student", layers=2, seed=7, dropout=0.2)
    other_scores = scored(same_shape, setup.pairs, tmp_path / "scores")
    anchors = {"reference": {"scores": str(setup.reference_scores)}, "teacher": {"scores": str(other_scores)}}
    assert "rows_per_step was 6 and is 4 now" in changed(data={"pairs_per_step": 4})
    assert "micro_batches was 3 and is 1 now" in changed(data={"tokens_per_batch": 1000})
    assert "seed was 0 and is 1 now" in changed(data={"seed": 1})
    place = {"folder": str(other_pairs)}
    assert "digest_of_rows was " in changed(data={"train": place | {"split": "train"}})
    said = changed(model={"student": {"path": str(same_shape)}})
    assert f"student.path was {setup.student} and is {same_shape} now" in said
    assert "anchors.teacher was " in changed(model={"anchors": anchors})
    ranks = two(Training(forks, setup, tmp_path / "run")).fit(environments=torchrun(2))
    assert ranks.statuses == [2, 2]
    assert "world_size was 1 and is 2 now" in refused(ranks)
    assert same(killed.checkpoint()["state_dict"], before["state_dict"])


def test_flags_are_obeyed_beside_a_checkpoint(forks: Forks, setup: Setup, tmp_path: Path) -> None:
    killed = Training(forks, setup, tmp_path)
    assert killed.fit(Fault("micro-batch", 8)).status < 0
    flags = ["--model.init_args.loss.init_args.beta_reference", "0.7"]
    ended = forks.run(*killed.command(), *flags, cwd=tmp_path)
    assert ended.status == 0, ended
    assert killed.checkpoint()["dadpo"]["objective"]["betas"] == {"reference": 0.7, "teacher": 0.01}


def test_last_and_best_are_found_by_every_command_or_missed_in_one_line(
    forks: Forks, whole: Training, tmp_path: Path
) -> None:
    missing = Training(forks, whole.setup, tmp_path)
    folder = tmp_path / "checkpoints"
    for subcommand in ("validate", "predict"):
        ended = forks.run(*missing.command(subcommand), cwd=tmp_path)
        assert refused(ended) == f"error: --ckpt_path last: no last.ckpt in {folder}"
        ended = forks.run(*missing.command(subcommand, "best"), cwd=tmp_path)
        assert refused(ended) == f"error: --ckpt_path best: {folder / 'best.ckpt'}: no such checkpoint"
    for name in ("last", "best"):
        ended = forks.run(*whole.command("validate", name), cwd=whole.folder)
        assert ended.status == 0, ended
    assert "a training goes on from `last`" in refused(forks.run(*whole.command("fit", "best"), cwd=whole.folder))


def test_a_users_checkpoints_beside_ours_never_break_a_step(forks: Forks, whole: Training, tmp_path: Path) -> None:
    """Planted: Lightning saves anew at the first micro-batch of a run that goes on, in the middle of a step."""
    plain = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    theirs = {"every_n_train_steps": 1, "save_top_k": -1, "dirpath": str(tmp_path / "theirs")}
    ours = {"class_path": "LastCheckpoint", "init_args": {"every_n_steps": 2}}
    callbacks = [ours, {"class_path": "BestCheckpoint"}, plain | {"init_args": theirs}]
    killed = Training(forks, whole.setup, tmp_path / "run", trainer={"callbacks": callbacks})
    assert killed.fit(Fault("micro-batch", 2 * MICRO_BATCHES + 2)).status < 0
    assert killed.fit(Fault("micro-batch", 2)).status < 0  # in the middle of the third step
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == [
        "epoch=0-step=1.ckpt",
        "epoch=0-step=2.ckpt",
    ]
    assert killed.fit(checkpoint=str(tmp_path / "theirs" / "epoch=0-step=1.ckpt")).status == 0
    assert same(killed.checkpoint()["state_dict"], whole.checkpoint()["state_dict"])


def test_a_checkpoint_from_within_a_step_is_not_gone_on_from(forks: Forks, setup: Setup, tmp_path: Path) -> None:
    validated = {"dirpath": str(tmp_path / "theirs"), "filename": "x"}  # behind the second step's first micro-batch
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": validated}]
    killed = Training(forks, setup, tmp_path / "run", trainer={"callbacks": callbacks})
    assert killed.fit(Fault("micro-batch", MICRO_BATCHES + 2), checkpoint=None).status < 0
    ended = killed.fit(checkpoint=str(tmp_path / "theirs" / "x.ckpt"))
    assert "in the middle of an optimizer step" in refused(ended)


def test_ranks_that_lightning_starts_end_together_and_speak_once(forks: Forks, setup: Setup, tmp_path: Path) -> None:
    """Lightning kills the first process when another one has ended before it."""
    started = two(Training(forks, setup, tmp_path))
    ended = started.fit(Fault("micro-batch", 3, TERM))
    assert ended.status == 143, ended
    assert ended.outputs[0].count("asked to stop: the checkpoint of step 2 is in") == 1
    assert "Traceback" not in ended.errors[0]
    started.data |= {"pairs_per_step": 4}
    assert "rows_per_step was 6 and is 4 now" in refused(started.fit())
