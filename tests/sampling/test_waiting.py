"""Reading prompts that begin alike together changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from lightning_dadpo.sampling.waiting import Waiting
from tests.tiny import END_OF_TURN

SYSTEM = list(range(100, 120))
ALIKE = [[*SYSTEM, 10 + number, *range(40, 40 + number)] for number in range(6)]
ODD = [100, 101, 7, 8]
SETTINGS = SamplerSettings(temperature=0.7, max_new_tokens=9)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    return load_frozen(ModelSpec(str(tiny_folder)), "32-true")


def read_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that each forward pass computes."""
    seen: list[int] = []
    forward = type(model).forward

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(named["input_ids"].numel())
        return forward(self, *arguments, **named)

    monkeypatch.setattr(type(model), "forward", counted)
    return seen


def test_what_a_family_shares_is_computed_once_however_many_begin_one_after_another(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_tokens(model, monkeypatch)
    waiting = Waiting(model, ALIKE)
    with torch.inference_mode():
        sizes = [len(waiting.begin(4)), len(waiting.begin(4))]
    assert sizes == [4, 2]
    assert len(waiting) == 0
    # the shared part; four rows as wide as the longest of them (1 + 3 own tokens); two rows of 1 + 5
    assert seen == [20, 16, 12]


def test_logits_behind_prompts_read_together_are_those_of_each_prompt_alone(model: Any) -> None:
    with torch.inference_mode():
        running = Waiting(model, ALIKE).begin(6)
        for prompt, length, logits in zip(running.prompts, running.lengths, running.logits, strict=True):
            alone = model(torch.tensor([ALIKE[prompt]])).logits[0, -1]
            assert int(length) == len(ALIKE[prompt])
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def independent_log_prob(model: Any, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(dim=-1)
    return sum(float(log_probs[len(prompt) - 1 + at, token]) for at, token in enumerate(response))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_a_full_batch_gives_every_prompt_what_it_gets_alone(model: Any, batch_size: int) -> None:
    prompts, keys = [ODD, *ALIKE], [f"key {number}" for number in range(7)]
    ends = (END_OF_TURN, *range(50, 259, 9))  # responses of many lengths, so that places become free at many times
    alone = TransformersSampler(model, ends, SETTINGS)
    rows = TransformersSampler(model, ends, SETTINGS, batch_size).sample(prompts, keys)
    assert len({len(row.token_ids) for row in rows}) > 3
    for prompt, key, row in zip(prompts, keys, rows, strict=True):
        assert row.token_ids == alone.sample([prompt], [key])[0].token_ids
        assert row.log_prob == pytest.approx(independent_log_prob(model, prompt, row.token_ids), rel=1e-4)


def test_places_that_become_free_are_taken_and_never_more_than_there_are(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, int]] = []
    forward = type(model).forward

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        rows.append(tuple(named["input_ids"].shape))
        return forward(self, *arguments, **named)

    monkeypatch.setattr(type(model), "forward", counted)
    prompts = ALIKE * 4
    ends = (END_OF_TURN, *range(50, 259, 9))
    drawn = TransformersSampler(model, ends, SETTINGS, 8).sample(prompts, [str(number) for number in range(24)])
    steps = [count for count, width in rows if width == 1]
    assert max(steps) == 8
    assert sum(steps) == sum(len(row.token_ids) - 1 for row in drawn)  # the last token of a response is never an input
    assert len(steps) < sum(max(len(row.token_ids) for row in drawn[start : start + 8]) for start in (0, 8, 16))


def test_a_prompt_with_several_responses_is_read_once_a_batch_and_each_draws_as_if_alone(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [ids for ids in ALIKE[:2] for _ in range(3)]
    keys = [f"key {number}" for number in range(6)]
    ends = (END_OF_TURN, *range(50, 259, 9))
    sampler = TransformersSampler(model, ends, SETTINGS, 8)
    alone = [sampler.sample([prompt], [key])[0] for prompt, key in zip(prompts, keys, strict=True)]
    with monkeypatch.context() as patch:
        seen = read_tokens(model, patch)
        rows = sampler.sample(prompts, keys)
    # the shared part; two rows of 1 and 2 own tokens, though six responses were asked for; then six of one token
    assert seen[:3] == [20, 4, 6]
    assert len({tuple(row.token_ids) for row in rows}) == 6
    for prompt, row, one in zip(prompts, rows, alone, strict=True):
        assert row.token_ids == one.token_ids
        assert row.log_prob == pytest.approx(independent_log_prob(model, prompt, row.token_ids), rel=1e-4)


def test_A11_padding_is_told_by_lengths_where_prompts_hold_the_padding_id_and_the_end_of_turn(model: Any) -> None:
    prompts = [[END_OF_TURN, 40, END_OF_TURN, 0], [0, 0, 41, END_OF_TURN, 42, 43, 0], [END_OF_TURN]]
    for prompt, row in zip(
        prompts, TransformersSampler(model, (END_OF_TURN,), SETTINGS).sample(prompts, ["a", "b", "c"]), strict=True
    ):
        assert row.log_prob == pytest.approx(independent_log_prob(model, prompt, row.token_ids), rel=1e-4)


def mistral(window: int | None) -> Any:
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window)).eval()


def test_a_sliding_window_sees_in_company_what_it_sees_alone() -> None:
    model, prompts = mistral(window=5), [ODD, *ALIKE, [3]]
    rows = TransformersSampler(model, (END_OF_TURN,), SETTINGS, 3).sample(prompts, [str(key) for key in range(8)])
    everything = mistral(window=None)
    for prompt, row in zip(prompts, rows, strict=True):
        expected = independent_log_prob(model, prompt, row.token_ids)
        assert row.log_prob == pytest.approx(expected, rel=1e-4)
        assert abs(independent_log_prob(everything, prompt, row.token_ids) - expected) > 0.1  # the window matters here
