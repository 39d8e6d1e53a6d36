"""Killed anywhere, as often as one likes: what comes out is what an undisturbed run gives, to the last digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import python_module

SEED = 11
STAGES = 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drill")
    done = python_module("tests.integration.drill", str(folder), str(SEED), WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return read


def stages(root: Path) -> dict[str, Path]:
    index = json.loads((root / "run" / "experiment.json").read_text())
    return {stage["name"]: Path(stage["folder"]) for stage in index["stages"]}


def test_kills_hit_every_stage_and_every_kind_of_moment(report: dict[str, Any]) -> None:
    assert len(report["kills"]) >= 30
    assert len(report["stages"]) >= STAGES
    moments = report["events"]
    for file in ("manifest.json", "last.ckpt"):
        assert any(event == f"half a file {file}" for event in moments), (file, moments)
    for event in ("half a row", "micro-batch", "validation", "before a rename", "after a rename"):
        assert any(seen.startswith(event) for seen in moments), (event, moments)
    assert set(report["whom"]) == {"stage", "both", "run"}


def test_a_run_beside_the_orphan_of_a_killed_one_is_refused(report: dict[str, Any]) -> None:
    assert len(report["refused"]) >= 2
    assert all(report["refused"])


def test_the_summary_is_the_same_to_the_digit(folder: Path) -> None:
    summaries = [(folder / name / "run" / "summary.json").read_text() for name in ("undisturbed", "killed")]
    assert summaries[0] == summaries[1]


def test_every_row_and_every_weight_is_the_same(folder: Path) -> None:
    ours, theirs = stages(folder / "killed"), stages(folder / "undisturbed")
    assert list(ours) == list(theirs)
    assert len(ours) == STAGES
    compared = 0
    for name, there in theirs.items():
        for file in (*sorted(there.glob("*.jsonl")), *sorted(there.glob("*.safetensors"))):
            assert (ours[name] / file.name).read_bytes() == file.read_bytes(), (name, file.name)
            compared += 1
        for file in sorted(there.glob("checkpoints/*.ckpt")):
            assert same_training(ours[name] / "checkpoints" / file.name, file), (name, file.name)
            compared += 1
    assert compared >= 20


def same_training(ours: Path, theirs: Path) -> bool:
    here, there = (torch.load(path, weights_only=True) for path in (ours, theirs))
    keys = {"state_dict", "optimizer_states"} & set(there)
    flat = [torch.utils._pytree.tree_leaves([state[key] for key in sorted(keys)]) for state in (here, there)]
    return len(flat[0]) == len(flat[1]) and all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(*flat, strict=True)
    )


def test_nothing_half_made_is_left(folder: Path) -> None:
    assert not list((folder / "killed" / "run").glob("*.partial"))
    for stage in stages(folder / "killed").values():
        assert (stage / "manifest.json").is_file()
