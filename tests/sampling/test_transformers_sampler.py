"""The drawn distribution, the log-prob beside it, and what must not change either."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lightning_dadpo.data.packing import pack
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import Sampled, SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler, response_uniforms
from lightning_dadpo.sampling.transformers_sampler import draw as draw_tokens
from tests.tiny import END_OF_TURN

PROMPTS = [[40, 41, 42], [50] * 9, [60], [70, 71, 72, 73, 74, 75]]
KEYS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    return load_frozen(ModelSpec(str(tiny_folder)), "32-true")


def draw(model: Any, ends: tuple[int, ...] = (END_OF_TURN,), **settings: Any) -> list[Sampled]:
    settings = {"temperature": 0.7, "max_new_tokens": 12} | settings
    return TransformersSampler(model, ends, SamplerSettings(**settings)).sample(PROMPTS, KEYS)


def drawn_tokens(logits: list[float], **settings: Any) -> Counter[int]:
    """What an even grid of uniform numbers draws: the shares of the grid are the probabilities, up to its step."""
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    scores = torch.tensor([logits]).expand(2000, -1)
    return Counter(draw_tokens(scores, grid, SamplerSettings(**settings)).tolist())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_are_distributed_as_softmax_of_logits_over_temperature(temperature: float) -> None:
    logits = [0.3, -1.0, 2.0, 0.0, -0.4]
    shares = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, dim=0).tolist()
    counts = drawn_tokens(logits, temperature=temperature)
    for token, share in enumerate(shares):
        assert counts[token] / 2000 == pytest.approx(share, abs=1e-3)


def test_uniform_numbers_of_the_sampler_are_uniform_and_differ_by_key_and_seed() -> None:
    settings, other = SamplerSettings(max_new_tokens=4000), SamplerSettings(max_new_tokens=4000, seed=1)
    numbers = response_uniforms(settings, "one")
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    assert float(((counts - 400) ** 2 / 400).sum()) < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    assert torch.equal(numbers, response_uniforms(settings, "one"))
    for different in (response_uniforms(settings, "two"), response_uniforms(other, "one")):
        assert abs(float(torch.corrcoef(torch.stack([numbers, different]))[0, 1])) < 0.06


def test_top_p_keeps_the_likeliest_tokens_of_the_tempered_distribution_and_renormalises() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    counts = drawn_tokens(logits, temperature=1.0, top_p=0.75)
    assert set(counts) == {0, 1}
    assert counts[0] / 2000 == pytest.approx(0.5 / 0.8, abs=1e-3)


def test_temperature_zero_takes_the_likeliest_token_each_time(model: Any) -> None:
    row = draw(model, temperature=0.0)[0]
    ids = list(PROMPTS[0])
    for token in row.token_ids:
        with torch.no_grad():
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def independent_log_prob(model: Any, prompt: list[int], response: list[int]) -> float:
    """Temperature 1, nothing cut off, one unpadded forward, float64."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].double()
    log_probs = logits.log_softmax(dim=-1)
    return sum(float(log_probs[len(prompt) - 1 + at, token]) for at, token in enumerate(response))


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.5}, {"temperature": 0.0}, {"temperature": 1.5}])
def test_B4_the_log_prob_is_the_raw_models_of_an_independent_unpadded_forward(
    model: Any, settings: dict[str, Any]
) -> None:
    for prompt, row in zip(PROMPTS, draw(model, **settings), strict=True):
        assert row.log_prob == pytest.approx(independent_log_prob(model, prompt, row.token_ids), rel=1e-4)


def test_the_log_prob_is_what_scoring_gives_the_same_ids(model: Any) -> None:
    rows = draw(model)
    batch = pack(PROMPTS, [[row.token_ids] for row in rows])
    with torch.no_grad():
        again = model_log_probs(model, batch)
    assert again.total.tolist() == pytest.approx([row.log_prob for row in rows], rel=1e-4)


def test_each_token_is_the_exact_inversion_of_its_prompts_uniform_numbers(model: Any) -> None:
    rows, settings = draw(model), SamplerSettings(temperature=0.7, max_new_tokens=12)
    for prompt, key, row in zip(PROMPTS, KEYS, rows, strict=True):
        uniforms = response_uniforms(settings, key).tolist()
        ids = list(prompt)
        for uniform, token in zip(uniforms, row.token_ids, strict=False):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double()
            cumulated = (logits / 0.7).softmax(dim=-1).cumsum(dim=-1)
            below = float(cumulated[token - 1]) if token else 0.0
            assert below - 1e-5 <= uniform <= float(cumulated[token]) + 1e-5
            ids.append(token)


def test_A9_the_models_own_generation_config_changes_nothing_and_is_left_as_it_was(model: Any) -> None:
    plain, before = draw(model), model.generation_config
    try:
        model.generation_config = GenerationConfig(
            repetition_penalty=5.0, top_k=1, temperature=0.01, do_sample=True, no_repeat_ngram_size=1,
            min_new_tokens=8, suppress_tokens=[5, 6, 7], eos_token_id=77, max_new_tokens=2, num_return_sequences=1,
        )  # fmt: skip
        bent = model.generation_config
        assert draw(model) == plain
        assert model.generation_config is bent
    finally:
        model.generation_config = before


def test_a_prompt_gets_the_same_response_alone_or_in_company(model: Any) -> None:
    together = draw(model)
    sampler = TransformersSampler(model, (END_OF_TURN,), SamplerSettings(temperature=0.7, max_new_tokens=12))
    for prompt, key, row in zip(PROMPTS, KEYS, together, strict=True):
        (alone,) = sampler.sample([prompt], [key])
        assert alone.token_ids == row.token_ids
        assert alone.log_prob == pytest.approx(row.log_prob, rel=1e-4)
    assert sampler.sample(PROMPTS[::-1], KEYS[::-1])[::-1][0].token_ids == together[0].token_ids


def test_the_same_prompt_under_two_keys_gets_two_draws(model: Any) -> None:
    sampler = TransformersSampler(model, (END_OF_TURN,), SamplerSettings(max_new_tokens=12))
    one, two = sampler.sample([PROMPTS[0], PROMPTS[0]], ["a", "b"])
    assert one.token_ids != two.token_ids


def test_A7_a_response_stopped_by_the_cap_gains_no_end_of_turn(model: Any) -> None:
    long = draw(model, max_new_tokens=40)
    for row in long:
        assert (row.finish_reason == "stop") == (row.token_ids[-1] == END_OF_TURN)
    for cap in (1, 3):
        for row, longer in zip(draw(model, max_new_tokens=cap), long, strict=True):
            assert row.token_ids == longer.token_ids[:cap]
            assert row.finish_reason == ("stop" if END_OF_TURN in row.token_ids else "length")


def test_any_id_of_the_list_ends_a_turn_and_nothing_behind_it_counts(model: Any) -> None:
    free = draw(model, max_new_tokens=12)
    first, second = free[0].token_ids[4], free[1].token_ids[2]
    ended = draw(model, ends=(END_OF_TURN, first, second), max_new_tokens=12)
    for prompt, row, whole in zip(PROMPTS, ended, free, strict=True):
        ends = [at for at, token in enumerate(whole.token_ids) if token in (END_OF_TURN, first, second)]
        assert row.token_ids == whole.token_ids[: ends[0] + 1 if ends else None]
        assert row.finish_reason == ("stop" if ends else "length")
        assert row.log_prob == pytest.approx(independent_log_prob(model, prompt, row.token_ids), rel=1e-4)
    assert sum(row.finish_reason == "stop" for row in ended) >= 2


def test_sampling_leaves_the_global_random_state_alone(model: Any) -> None:
    before = torch.get_rng_state()
    draw(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_finished_rows_leave_the_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of_each_pass: list[int] = []
    forward = type(model).forward

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        rows_of_each_pass.append(len(named["input_ids"]))
        return forward(self, *arguments, **named)

    monkeypatch.setattr(type(model), "forward", counted)
    sampled = draw(model, ends=tuple(range(0, 259, 4)), max_new_tokens=30)
    running = [sum(len(one.token_ids) > step for one in sampled) for step in range(len(rows_of_each_pass))]
    assert rows_of_each_pass == running
    assert rows_of_each_pass[-1] < rows_of_each_pass[0] == len(PROMPTS)


def test_layers_that_do_not_keep_single_tokens_are_refused_by_name(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["full_attention", "linear_attention", "sliding_attention", "full_attention"]
    monkeypatch.setattr(model.config, "layer_types", kinds, raising=False)
    with pytest.raises(ConfigError, match="sampling from linear_attention layers is not supported here; expected full"):
        TransformersSampler(model, (END_OF_TURN,), SamplerSettings())
