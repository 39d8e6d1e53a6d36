"""The same numbers under every strategy: two processes, held to one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.export import export_checkpoint
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.resuming import check_checkpoint
from tests.commands import python_module
from tests.scoring.example import make_response, make_setup, trainer, write_artifact
from tests.training.strategy_runs import CASES, KILLED, main, strategy_of

DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
STRATEGIES = ["ddp", "fsdp2", "zero2", "zero3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and scores, and what one process comes to, and two under each strategy that is installed."""
    folder = tmp_path_factory.mktemp("strategies")
    make_setup(folder)
    write_artifact(folder / "responses", "responses", [make_response(number) for number in range(16)])
    main(folder, ["one"])
    names = [name for name in STRATEGIES if DEEPSPEED or not name.startswith("zero")]
    done = python_module("tests.training.strategy_runs", str(folder), *names, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(params=STRATEGIES)
def runs(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, str]:
    """What two processes come to."""
    name: str = request.param
    if name.startswith("zero") and not DEEPSPEED:
        pytest.skip("DeepSpeed is not installed: pip install 'lightning-dadpo[deepspeed]'")
    return folder, name


def steps_of(root: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((root / "seen.json").read_text("utf-8"))["steps"]
    return found


def weights_of(root: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(root / "weights.pt", weights_only=True)
    return loaded


def same_weights(found: Path, expected: Path, atol: float) -> None:
    theirs, ours = weights_of(found), weights_of(expected)
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        # AdamW moves a weight by up to its rate of 1e-3 a step, whatever the gradient's size
        assert torch.allclose(theirs[name], value, rtol=0, atol=atol), (name, (theirs[name] - value).abs().max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_D1_the_losses_and_the_final_student_are_those_of_one_process(runs: tuple[Path, str], case: Any) -> None:
    folder, name = runs
    ours, alone = steps_of(folder / name / case.name), steps_of(folder / "one" / case.name)
    assert len(ours) == len(alone) == 6
    for here, there in zip(ours, alone, strict=True):
        for value, expected in there.items():
            assert here[value] == pytest.approx(expected, rel=1e-3, abs=1e-6), value
    # there dSFT has elements with next to no gradient, of which AdamW's moments make rounding alone
    atol = 1e-4 if case.kind in ("dSFT", "distillation") else 2e-5
    same_weights(folder / name / case.name, folder / "one" / case.name, atol)


def test_weights_are_spread_where_the_strategy_says_so_those_of_frozen_models_too(runs: tuple[Path, str]) -> None:
    folder, name = runs
    for case in CASES:
        found = json.loads((folder / name / case.name / "seen.json").read_text("utf-8"))
        assert found["frozen"] == {"live": 2, "term": 2, "distillation": 1}.get(case.kind, 0)
        assert found["spread"] == [name in ("fsdp2", "zero3")] * (1 + found["frozen"])


def test_D4_a_resumed_run_ends_where_the_whole_one_did(runs: tuple[Path, str]) -> None:
    folder, name = runs
    whole, resumed = folder / name / KILLED.name, folder / name / "resumed"
    assert steps_of(resumed) == steps_of(whole)[4:]
    for key, value in weights_of(whole).items():
        assert torch.equal(weights_of(resumed)[key], value), key
    found = sorted(path.name for path in (resumed / "checkpoints").iterdir())
    assert len(found) == (2 if name.startswith("zero") else 1), found  # the name, and the folder that it leads to


def test_parts_of_two_ranks_are_not_handed_to_one(runs: tuple[Path, str], tmp_path: Path) -> None:
    """What is one file says by itself how many ranks wrote it, when it is read."""
    folder, name = runs
    path = folder / name / "resumed" / "checkpoints" / "last.ckpt"
    if name.startswith("zero"):
        with pytest.raises(ConfigError, match="cannot resume: world_size was 2 and is 1 now"):
            check_checkpoint(trainer(tmp_path, strategy=strategy_of(name)), str(path))
    else:
        check_checkpoint(trainer(tmp_path), str(path))


def test_another_rate_and_another_epoch_are_obeyed_as_by_one_process(runs: tuple[Path, str]) -> None:
    """Planted: at the checkpoint's own rate weights end up to 2e-3 apart."""
    folder, name = runs
    assert len(steps_of(folder / name / "longer")) == 3
    same_weights(folder / name / "longer", folder / "one" / "longer", 1e-4)


def test_the_checkpoint_exports_as_it_is(runs: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = runs
    for case in CASES:
        out = tmp_path / case.name
        export_checkpoint(str(folder / name / case.name / "checkpoints" / "last.ckpt"), str(out))
        model = load_model(ModelSpec(str(out)))
        expected = weights_of(folder / name / case.name)
        for key, value in model.named_parameters():
            assert torch.equal(value, expected[key]), key
