"""An adapter under every strategy: two processes, held to one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_dadpo.models.export import export_checkpoint
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.models.stored_adapters import merge_adapter, read_adapter
from tests.commands import python_module
from tests.scoring.example import make_setup
from tests.training.adapter_runs import main

STRATEGIES = ["ddp", "fsdp2", "zero2", "zero3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process comes to, and two under each strategy."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install 'lightning-dadpo[deepspeed]'")
    folder = tmp_path_factory.mktemp("adapter-strategies")
    make_setup(folder)
    main(folder, ["one"])
    done = python_module("tests.training.adapter_runs", str(folder), *STRATEGIES, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def weights_of(root: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(root / "weights.pt", weights_only=True)
    return loaded


@pytest.mark.parametrize("run", ["whole", "begun"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_D1_the_losses_and_the_adapter_are_those_of_one_process(folder: Path, name: str, run: str) -> None:
    ours, alone = (json.loads((folder / who / run / "seen.json").read_text("utf-8")) for who in (name, "one"))
    assert len(ours) == len(alone) == 6
    for here, there in zip(ours, alone, strict=True):
        for value, expected in there.items():
            assert here[value] == pytest.approx(expected, rel=1e-3, abs=1e-6), value
    theirs, expected_weights = weights_of(folder / name / run), weights_of(folder / "one" / run)
    assert theirs.keys() == expected_weights.keys()
    assert len(theirs) == 28
    for key, value in expected_weights.items():
        assert torch.allclose(theirs[key], value, rtol=0, atol=2e-5), key


@pytest.mark.parametrize("name", ["one", *STRATEGIES])
def test_D4_a_resumed_run_ends_where_the_whole_one_did(folder: Path, name: str) -> None:
    whole, resumed = weights_of(folder / name / "whole"), weights_of(folder / name / "resumed")
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_checkpoint_holds_the_adapter_alone_and_exports_as_it_is(folder: Path, name: str, tmp_path: Path) -> None:
    path = str(folder / name / "whole" / "checkpoints" / "last.ckpt")
    stored, expected = read_adapter(path), weights_of(folder / name / "whole")
    assert len(stored.weights) == 14
    for layer, (a, b) in stored.weights.items():
        assert torch.equal(a, expected[f"{layer}.lora_A.trained.weight"])
        assert torch.equal(b, expected[f"{layer}.lora_B.trained.weight"])
    merged = load_model(ModelSpec(str(folder / "student")))
    merge_adapter(merged, stored, path)
    exported = load_model(ModelSpec(str(export_checkpoint(path, str(tmp_path / "out")))))
    for (key, value), ours in zip(merged.named_parameters(), exported.parameters(), strict=True):
        assert torch.equal(value, ours), key
