"""The planner's figures against what a real process holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.models.footprint import Footprint, footprint
from lightning_dadpo.models.loading import count_parameters, load_model
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.training.memory import Layout, Parts, scoring_memory, training_memory
from tests.commands import python_module
from tests.tiny import VOCABULARY, tiny_model
from tests.training.memory_peaks import LENGTHS

CPU = torch.device("cpu")
ADAPTER = {"model": "teacher", "pairs": 2, "micro_batches": 2, "rank": 8}
CELLS: dict[str, dict[str, Any]] = {
    "plain": {"model": "student", "pairs": 8, "plain": True},
    "2 pairs": {"model": "student", "pairs": 2},
    "2 micro-batches": {"model": "student", "pairs": 2, "micro_batches": 2},
    "8 pairs": {"model": "student", "pairs": 8},
    "live": {"model": "student", "pairs": 4, "frozen": ["student", "teacher"]},
    "scoring": {"model": "teacher", "pairs": 4, "scoring": True},
    "adapter": ADAPTER,
    "adapter nf4": ADAPTER | {"quantize": "nf4"},
}
"""What `memory_peaks` measures, in one process; models by the names of `models`."""
CLOSE = 0.15
"""Share of the peak by which plan and measurement may differ where no allocator keeps anything."""
NEEDS = {"adapter": ["peft"], "adapter nf4": ["peft", "bitsandbytes"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Large enough that a process's own noise is small beside them."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"student": (6, 256), "teacher": (12, 256), "small": (1, 32)}
    return {name: tiny_model(root / name, layers=layers, hidden=hidden) for name, (layers, hidden) in sizes.items()}


def missing(cell: str) -> list[str]:
    return [package for package in NEEDS.get(cell, []) if importlib.util.find_spec(package) is None]


@pytest.fixture(scope="module")
def peaks(models: dict[str, Path]) -> dict[str, int]:
    """Bytes of every cell's peak beyond the process's base."""
    named = {name: str(path) for name, path in models.items()}
    cells = {name: cell for name, cell in CELLS.items() if not missing(name)}
    asked = [
        cell | {"model": named[cell["model"]], "small": named["small"]}
        | {"frozen": [named[name] for name in cell.get("frozen", [])]}
        for cell in cells.values()
    ]  # fmt: skip
    done = python_module("tests.training.memory_peaks", json.dumps(asked))
    assert done.returncode == 0, done.stderr[-3000:]
    found = [int(line) for line in done.stdout.splitlines() if line.isdecimal()]
    return dict(zip(cells, found, strict=True))


def counted(models: dict[str, Path], name: str, pairs: int, **settings: Any) -> Footprint:
    return footprint(ModelSpec(str(models[name])), LENGTHS, pairs * 158, "32-true", CPU, **settings)


def needed(parts: Parts) -> float:
    """Without what an allocator may keep: the measured one keeps nothing."""
    return parts.total - parts.allocator


def test_parameters_are_those_of_the_loaded_model(models: dict[str, Path]) -> None:
    found, model = counted(models, "student", 1), load_model(ModelSpec(str(models["student"])))
    assert found.parameters == count_parameters(model)
    assert found.layers == 6
    assert found.head == model.get_output_embeddings().weight.numel()


def test_pruning_takes_whole_layers_as_few_as_reach_the_share(models: dict[str, Path]) -> None:
    whole, pruned = (
        footprint(ModelSpec(str(models["teacher"])), LENGTHS, 200, "32-true", CPU, remove_share=share)
        for share in (0.0, 0.2)
    )
    assert pruned.layers == 9  # two of twelve layers would be 16 %, the embeddings hold the rest
    assert whole.parameters - pruned.parameters == 3 * whole.layer


def test_training_is_within_a_quarter_of_the_peak_with_the_usual_allocator(
    models: dict[str, Path], peaks: dict[str, int]
) -> None:
    found = training_memory(counted(models, "student", 8), [], Layout(), 8, cached_anchors=2)
    assert found.total == pytest.approx(peaks["plain"], rel=0.25)


@pytest.mark.parametrize("cell", ["2 pairs", "2 micro-batches", "8 pairs"])
def test_training_from_scores_needs_what_is_measured(models: dict[str, Path], peaks: dict[str, int], cell: str) -> None:
    pairs, micro_batches = CELLS[cell]["pairs"], CELLS[cell].get("micro_batches", 1)
    layout = Layout(micro_batches=micro_batches)
    found = training_memory(counted(models, "student", pairs), [], layout, pairs, cached_anchors=2)
    assert needed(found) == pytest.approx(peaks[cell], rel=CLOSE)


def test_training_with_live_anchors_needs_what_is_measured(models: dict[str, Path], peaks: dict[str, int]) -> None:
    student, teacher = (counted(models, name, 4) for name in ("student", "teacher"))
    found = training_memory(student, [student, teacher], Layout(), 4, cached_anchors=0)
    assert needed(found) == pytest.approx(peaks["live"], rel=CLOSE)


@pytest.mark.parametrize("cell", ["adapter", "adapter nf4"])
def test_training_an_adapter_needs_what_is_measured(models: dict[str, Path], peaks: dict[str, int], cell: str) -> None:
    """Planted: without the adapter the plan counts gradients and moments of all weights, and says twice as much."""
    if missing(cell):
        pytest.skip(f"{', '.join(missing(cell))} not installed: pip install 'lightning-dadpo[qlora]'")
    adapter = AdapterSpec(rank=8, quantize=CELLS[cell].get("quantize"))
    student = counted(models, "teacher", 2, adapter=adapter)
    model = load_model(ModelSpec(str(models["teacher"])))
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features != VOCABULARY]
    assert student.adapter == sum(8 * (layer.in_features + layer.out_features) for layer in linear)
    found = training_memory(student, [], Layout(micro_batches=2), 2, cached_anchors=2)
    assert found.gradients == 4 * student.adapter
    assert found.optimizer == 8 * student.adapter
    assert needed(found) == pytest.approx(peaks[cell], rel=CLOSE)


def test_scoring_needs_what_is_measured(models: dict[str, Path], peaks: dict[str, int]) -> None:
    found = scoring_memory(counted(models, "teacher", 4), 1, sixteen_bit=False)
    assert found == pytest.approx(peaks["scoring"], rel=0.25)


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_zero3"])
def test_more_devices_hold_less_each_where_the_strategy_spreads(models: dict[str, Path], strategy: Any) -> None:
    student = counted(models, "student", 1)
    two, eight = (training_memory(student, [student], Layout(strategy, n), 8, 0) for n in (2, 8))
    for part in ("weights", "gradients", "optimizer", "frozen"):
        assert getattr(eight, part) == pytest.approx(getattr(two, part) / 4)
    whole = training_memory(student, [student], Layout("ddp", 8), 8, 0)
    assert whole.weights == 4 * student.parameters
    assert whole.frozen == 4 * student.parameters
