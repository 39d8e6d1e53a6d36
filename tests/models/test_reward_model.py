"""Reward models, held to their own head by hand: float64, one row at a time, no padding anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from lightning_dadpo.errors import ConfigError, DadpoError, DataError
from lightning_dadpo.models.reward_model import _widen_head, batches_of, load_reward_model, rewards
from lightning_dadpo.models.spec import ModelSpec
from tests.reward import tiny_reward_model
from tests.tiny import END_OF_TURN

CPU = torch.device("cpu")
ROWS = [[5], [9, 8, 7, 6, 5, 4, 30, 31], [40, 41, END_OF_TURN], [50, 51, 52, END_OF_TURN, END_OF_TURN], [0, 60]]
"""Some end in the end of a turn, which is some models' padding token too; one begins with another one's."""

Make = Callable[..., ModelSpec]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A random reward model whose config names this padding token, in a folder."""
    made: dict[int | None, ModelSpec] = {}

    def folder(padding: int | None) -> ModelSpec:
        if padding not in made:
            made[padding] = ModelSpec(str(tiny_reward_model(tmp_path_factory.mktemp("reward"), padding)))
        return made[padding]

    return folder


@torch.no_grad()
def by_hand(spec: ModelSpec, row: list[int], padding: int | None) -> float:
    """Trunk, and the head's one row times the state of the last token that is no padding, in float64."""
    model = LlamaForSequenceClassification.from_pretrained(spec.path).double().eval()
    last = max(at for at, token in enumerate(row) if token != padding)
    state = model.model(input_ids=torch.tensor([row])).last_hidden_state[0, last].tolist()
    return sum(a * b for a, b in zip(state, model.score.weight[0].tolist(), strict=True))


@pytest.mark.parametrize("padding", [None, 0, END_OF_TURN])
def test_a_batch_gives_what_each_gives_alone(make: Make, padding: int | None) -> None:
    spec = make(padding)
    model = load_reward_model(spec, "32-true", CPU)
    assert not model.training
    batches = batches_of(model, [(0, 1, 2), (3, 4)])
    assert batches == ([(0,), (1,), (2,), (3,), (4,)] if padding is None else [(0, 1, 2), (3, 4)])
    found = {
        row: value
        for batch in batches
        for row, value in zip(batch, rewards(model, [ROWS[row] for row in batch]).tolist(), strict=True)
    }
    expected = [by_hand(spec, row, padding) for row in ROWS]
    assert [found[row] for row in range(len(ROWS))] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1


def test_16_bits_round_the_trunk_alone(make: Make) -> None:
    model = load_reward_model(make(0), "bf16-true", CPU)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.score.weight.dtype == torch.float32
    found = rewards(model, ROWS)
    assert found.tolist() == pytest.approx([by_hand(make(0), row, 0) for row in ROWS], abs=0.1)
    assert not torch.equal(found, found.bfloat16().double())  # a 16-bit head's answers would be


def test_a_head_that_is_not_known_is_not_guessed(make: Make) -> None:
    model = load_reward_model(make(0), "32-true", CPU)
    model.other = torch.nn.Linear(4, 1)
    with pytest.raises(ConfigError, match=r"has 2 layers of one output.* precision 32-true"):
        _widen_head(make(0), model)


def refused(spec: ModelSpec) -> DadpoError:
    with pytest.raises(DadpoError) as caught:
        load_reward_model(spec, "32-true", CPU)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_language_model_is_no_reward_model(tiny_folder: Path, tmp_path: Path) -> None:
    assert "has 2 outputs, expected the one of a reward model" in str(refused(ModelSpec(str(tiny_folder))))
    model: Any = LlamaForCausalLM.from_pretrained(tiny_folder)
    model.config.num_labels = 1
    model.save_pretrained(tmp_path)
    error = refused(ModelSpec(str(tmp_path)))
    assert isinstance(error, DataError)
    assert "its files lack score.weight, the head that makes a reward" in str(error)


def test_pickled_weights_and_missing_ones_are_refused(make: Make, tmp_path: Path) -> None:
    source = Path(make(0).path)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "pickled weights, which can run code; expected safetensors" in str(refused(ModelSpec(str(tmp_path))))
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    assert "its files lack model.layers.2" in str(refused(ModelSpec(str(tmp_path))))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"gguf_file": "x.gguf"}, "gguf_file"),
        ({"chunk_tokens": 3}, "chunk_tokens"),
        ({"attention": "varlen"}, "attention varlen"),
        ({"quantize": "int8"}, "quantize int8"),
        ({"path": "nowhere"}, "no such folder"),
    ],
)
def test_what_a_reward_model_cannot_obey_is_named(make: Make, changes: dict[str, Any], said: str) -> None:
    error = refused(replace(make(0), **changes))
    assert isinstance(error, ConfigError)
    assert said in str(error)
