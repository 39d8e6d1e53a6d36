"""The planner's figures against what a real process holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.models.footprint import Footprint, footprint
from lightning_dadpo.models.loading import count_parameters, load_model
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.training.memory import Layout, scoring_memory, training_memory
from tests.tiny import VOCABULARY, tiny_model

CPU = torch.device("cpu")
LENGTHS = (40, 60, 60)
"""Tokens of a prompt and of its responses."""
ROOT = Path(__file__).parents[2]

MEASURED = """
import gc, json, sys
sys.path.insert(0, {root!r})
import torch
from pathlib import Path
import transformers.models.llama.modeling_llama, transformers.models.auto.modeling_auto
from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.data.rows import Message, PairRow
from lightning_dadpo.losses import DaDPO
from lightning_dadpo.models.adapters import attach_adapter
from lightning_dadpo.models.loading import load_frozen, load_model
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.types import PairLogProbs

def loaded(path):
    spec = ModelSpec(path, quantize={quantize!r})
    model = load_model(spec).train()
    if {rank!r}:
        attach_adapter(model, AdapterSpec(rank={rank!r}), spec)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

prompt, chosen, rejected = {lengths!r}
def pair(n):
    row = [[3 + (n + k + i) % 250 for i in range(size)] for k, size in enumerate((prompt, chosen, rejected))]
    return PairRow(str(n), str(n), "train", [Message("user", "q")], row[0], row[1], "a", "stop", row[2], "b", "stop")

# what loading and a step of any model bring into a process is its base
small, warm = loaded({small!r})
model_log_probs(small, collate_pairs([pair(0)]).sequences).total.sum().backward()
warm.step()
del small, warm
gc.collect()
base, mapped = status("VmRSS"), status("RssFile")
student, optimizer = loaded({student!r})
frozen = [load_frozen(ModelSpec(path), "32-true") for path in {frozen!r}]
if {scoring!r}:
    student.requires_grad_(False)
for step in range(3):
    for part in range({micro_batches}):
        batch = collate_pairs([pair(n) for n in range({pairs})])
        if {scoring!r}:
            with torch.no_grad():
                model_log_probs(student, batch.sequences)
            continue
        with torch.no_grad():
            anchors = [PairLogProbs.split(model_log_probs(model, batch.sequences)) for model in frozen]
        policy = PairLogProbs.split(model_log_probs(student, batch.sequences))
        reference, teacher = anchors if anchors else (policy.detach(), policy.detach())
        DaDPO(0.09, 0.01)(policy, {{"reference": reference, "teacher": teacher}}).loss.sum().backward()
    if not {scoring!r}:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
# a quantised model's file stays mapped behind what it was made into, and can be let go at any time
print(json.dumps(status("VmHWM") - base - (status("RssFile") - mapped if {quantize!r} else 0)))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Large enough that a process's own noise is small beside them."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"student": (6, 384), "teacher": (12, 512)}
    made = {name: tiny_model(root / name, layers=layers, hidden=hidden) for name, (layers, hidden) in sizes.items()}
    return made | {"small": tiny_model(root / "small", layers=1)}


def counted(models: dict[str, Path], name: str, tokens: int) -> Footprint:
    return footprint(ModelSpec(str(models[name])), LENGTHS, tokens, "32-true", CPU)


def measured(models: dict[str, Path], **settings: Any) -> int:
    """Bytes of the peak beyond the process's base."""
    given = {"root": str(ROOT), "lengths": LENGTHS, "frozen": [], "scoring": False, "rank": 0, "quantize": None}
    given |= {"student": str(models["student"]), "small": str(models["small"])}
    script = MEASURED.format(**(given | {"micro_batches": 1} | settings))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    peak: int = json.loads(done.stdout.splitlines()[-1])
    return peak


def test_parameters_are_those_of_the_loaded_model(models: dict[str, Path]) -> None:
    found, model = counted(models, "student", 200), load_model(ModelSpec(str(models["student"])))
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


@pytest.mark.parametrize(("pairs", "micro_batches"), [(2, 1), (2, 2), (16, 1)])
def test_training_from_scores_is_within_a_quarter_of_the_measured_peak(
    models: dict[str, Path], pairs: int, micro_batches: int
) -> None:
    found = training_memory(
        counted(models, "student", pairs * 158), [], Layout(micro_batches=micro_batches), pairs, cached_anchors=2
    )
    assert found.total == pytest.approx(measured(models, pairs=pairs, micro_batches=micro_batches), rel=0.25)


def test_training_with_live_anchors_is_within_a_quarter_of_the_measured_peak(models: dict[str, Path]) -> None:
    student, teacher = (counted(models, name, 8 * 158) for name in ("student", "teacher"))
    found = training_memory(student, [student, teacher], Layout(), 8, cached_anchors=0)
    peak = measured(models, pairs=8, frozen=[str(models["student"]), str(models["teacher"])])
    assert found.total == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_training_an_adapter_is_within_a_quarter_of_the_measured_peak(models: dict[str, Path], quantize: Any) -> None:
    """Planted: without the adapter the plan counts gradients and moments of all weights, and says twice as much."""
    pytest.importorskip("peft", reason="peft is not installed: pip install 'lightning-dadpo[lora]'")
    if quantize is not None:
        pytest.importorskip(
            "bitsandbytes", reason="bitsandbytes is not installed: pip install 'lightning-dadpo[qlora]'"
        )
    spec = ModelSpec(str(models["teacher"]))
    adapter = AdapterSpec(rank=8, quantize=quantize)
    student = footprint(spec, LENGTHS, 2 * 158, "32-true", CPU, adapter=adapter)
    linear = [m for m in load_model(spec).modules() if isinstance(m, torch.nn.Linear) and m.out_features != VOCABULARY]
    assert student.adapter == sum(8 * (layer.in_features + layer.out_features) for layer in linear)
    found = training_memory(student, [], Layout(micro_batches=2), 2, cached_anchors=2)
    assert found.gradients == 4 * student.adapter
    assert found.optimizer == 8 * student.adapter
    teacher = models | {"student": models["teacher"]}
    peak = measured(teacher, pairs=2, micro_batches=2, rank=8, quantize=quantize)
    assert found.total == pytest.approx(peak, rel=0.25)


def test_scoring_is_within_a_quarter_of_the_measured_peak(models: dict[str, Path]) -> None:
    found = scoring_memory(counted(models, "teacher", 16 * 158), 1, sixteen_bit=False)
    peak = measured(models | {"student": models["teacher"]}, pairs=16, scoring=True)
    assert found == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_zero3"])
def test_more_devices_hold_less_each_where_the_strategy_spreads(models: dict[str, Path], strategy: Any) -> None:
    student = counted(models, "student", 200)
    two, eight = (training_memory(student, [student], Layout(strategy, n), 8, 0) for n in (2, 8))
    for part in ("weights", "gradients", "optimizer", "frozen"):
        assert getattr(eight, part) == pytest.approx(getattr(two, part) / 4)
    whole = training_memory(student, [student], Layout("ddp", 8), 8, 0)
    assert whole.weights == 4 * student.parameters
    assert whole.frozen == 4 * student.parameters
