"""The policy's log-probs, packed and padded, against a plain full forward and float64 loops, on a tiny Llama."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    DogeConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PhimoeConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3NextConfig,
    SmolLM3Config,
)

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models import log_probs
from lightning_dadpo.models.attention import TOKEN_TREES, MaskedRows, masked_rows, refuse_by_config
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.log_probs import (
    Kernels,
    attention_kernel,
    check_trunk_and_head,
    describe_kernels,
    model_log_probs,
    plain_log_probs,
    prepare,
    response_logits,
)
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.types import PackedBatch, SequenceBatch, SequenceLogProbs
from tests import oracles
from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model
from tests.trees import trees_of

ROWS = [(9, 5), (3, 14), (1, 1), (20, 2), (6, 6)]  # (prompt, response) tokens


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    return load_model(ModelSpec(str(tiny_folder)))


def packed_log_probs(model: Any, batch: SequenceBatch) -> SequenceLogProbs:
    """The fast path on the same rows."""
    return model_log_probs(model, trees_of(batch))


PATHS = {"packed": packed_log_probs, "padded": plain_log_probs}


def batch_of(rows: list[tuple[int, int]], seed: int = 0) -> SequenceBatch:
    """Right-padded with the end-of-turn id, which also ends every response."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(rows), max(p + r for p, r in rows)), END_OF_TURN)
    for row, (prompt, response) in enumerate(rows):
        ids[row, : prompt + response - 1] = torch.randint(3, VOCABULARY, (prompt + response - 1,), generator=generator)
    prompts = torch.tensor([p for p, _ in rows])
    return SequenceBatch(ids, prompts, prompts + torch.tensor([r for _, r in rows]))


def one_row(batch: SequenceBatch, row: int) -> SequenceBatch:
    """The row alone, without padding."""
    length = batch.lengths[row : row + 1]
    return SequenceBatch(batch.input_ids[row : row + 1, : int(length)], batch.prompt_lengths[row : row + 1], length)


def oracle_rows(model: Any, batch: SequenceBatch) -> list[tuple[float, int]]:
    """Every row alone through the model's own full forward, the rest in Python."""
    found = []
    for row in range(len(batch.lengths)):
        alone = one_row(batch, row)
        with torch.no_grad():
            logits = model(alone.input_ids).logits[0].double().tolist()
        ids = alone.input_ids[0].tolist()
        found.append(oracles.sequence_log_prob(logits, ids, int(alone.prompt_lengths), int(alone.lengths)))
    return found


def agrees(found: SequenceLogProbs, expected: list[tuple[float, int]]) -> bool:
    totals = pytest.approx([total for total, _ in expected], rel=1e-4)
    return bool(found.total.tolist() == totals) and found.num_tokens.tolist() == [count for _, count in expected]


@pytest.mark.parametrize("path", PATHS)
def test_a_batch_equals_the_full_forward_of_each_row_alone(model: Any, path: str) -> None:
    batch = batch_of(ROWS)
    with torch.no_grad():
        found = PATHS[path](model, batch)
    assert agrees(found, oracle_rows(model, batch))
    assert found.total.dtype == torch.float32


@pytest.mark.parametrize("path", PATHS)
def test_rows_do_not_depend_on_their_neighbours_or_their_order(model: Any, path: str) -> None:
    batch, scored = batch_of(ROWS), PATHS[path]
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        together = scored(model, batch)
        moved = SequenceBatch(batch.input_ids[order], batch.prompt_lengths[order], batch.lengths[order])
        shuffled = scored(model, moved)
        alone = torch.cat([scored(model, one_row(batch, row)).total for row in range(len(ROWS))])
    assert shuffled.total.tolist() == pytest.approx(together.total[order].tolist(), rel=1e-5)
    assert alone.tolist() == pytest.approx(together.total.tolist(), rel=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_equal_those_through_the_full_logits_with_a_coefficient_for_each_row(model: Any, path: str) -> None:
    """Trap B9 and the tied head (B7), through a real transformer."""
    batch, coefficients = batch_of(ROWS), torch.tensor([0.7, -1.3, 2.9, 0.1, 1.0])

    def gradients(totals: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (totals * coefficients).sum().backward()  # type: ignore[no-untyped-call]
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    full = []
    for row in range(len(ROWS)):
        alone = one_row(batch, row)
        log_probs = model(alone.input_ids).logits[0].log_softmax(dim=-1)
        span = range(int(alone.prompt_lengths), int(alone.lengths))
        full.append(torch.stack([log_probs[t - 1, alone.input_ids[0, t]] for t in span]).sum())
    expected, found = gradients(torch.stack(full)), gradients(PATHS[path](model, batch).total)
    model.zero_grad()
    assert "model.embed_tokens.weight" in expected
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-4 * scale), name


def test_B4_left_padding_in_a_batch_that_promises_right_padding_is_noticed(model: Any) -> None:
    batch = batch_of(ROWS)
    width = batch.input_ids.shape[1]
    left = torch.full_like(batch.input_ids, END_OF_TURN)
    for row, length in enumerate(batch.lengths.tolist()):
        left[row, width - length :] = batch.input_ids[row, :length]
    shift = width - batch.lengths
    defective = SequenceBatch(left, batch.prompt_lengths + shift, torch.full_like(batch.lengths, width))
    with torch.no_grad():
        assert not agrees(plain_log_probs(model, defective), oracle_rows(model, batch))


def test_B4_positions_that_run_on_through_a_packed_batch_are_noticed(model: Any) -> None:
    """Trees laid end to end, each still at position 0 of its own."""
    batch = batch_of(ROWS)
    trees, expected = trees_of(batch), oracle_rows(model, batch)
    # a whole tree shifted alone changes nothing, since RoPE is relative: the rest of a tree behind its prompt does
    starts = trees.position_ids == 0
    shifted = trees.position_ids + (~starts).long()
    with torch.no_grad():
        assert agrees(model_log_probs(model, replace(trees, position_ids=trees.position_ids + 7)), expected)
        assert not agrees(model_log_probs(model, replace(trees, position_ids=shifted)), expected)


def test_B4_positions_that_count_padding_are_noticed(model: Any) -> None:
    """Prompts padded to one width before the responses: masked, but without position ids RoPE is shifted."""
    batch = batch_of(ROWS)
    expected = oracle_rows(model, batch)
    widest, longest = int(batch.prompt_lengths.max()), int(batch.num_response_tokens.max())

    def scored(with_positions: bool) -> SequenceLogProbs:
        totals, counts = [], []
        for row, (prompt, response) in enumerate(ROWS):
            ids, mask = torch.full((widest + longest,), END_OF_TURN), torch.zeros(widest + longest)
            ids[:prompt], mask[:prompt] = batch.input_ids[row, :prompt], 1
            response_span = slice(widest, widest + response)
            ids[response_span], mask[response_span] = batch.input_ids[row, prompt : prompt + response], 1
            positions = (mask.cumsum(0) - 1).clamp(min=0).long()[None] if with_positions else None
            logits = model(ids[None], attention_mask=mask[None], position_ids=positions).logits[0].double().tolist()
            at = [prompt - 1, *range(widest, widest + response - 1)]
            targets = ids[widest : widest + response].tolist()
            totals.append(sum(oracles.log_softmax(logits[i])[t] for i, t in zip(at, targets, strict=True)))
            counts.append(response)
        return SequenceLogProbs(torch.tensor(totals), torch.tensor(counts))

    with torch.no_grad():
        assert agrees(scored(with_positions=True), expected)
        assert not agrees(scored(with_positions=False), expected)


def test_B3_one_model_scored_twice_has_no_reward_and_in_another_dtype_it_has(model: Any) -> None:
    batch = batch_of(ROWS)
    with torch.no_grad():
        policy, reference = packed_log_probs(model, batch), packed_log_probs(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            defective = packed_log_probs(model, batch)
    assert torch.equal(policy.total, reference.total)
    assert (policy.total - defective.total).abs().max() > 1e-3


def test_B6_dropout_follows_the_models_mode(tmp_path: Path) -> None:
    model = load_model(ModelSpec(str(tiny_model(tmp_path / "dropout", dropout=0.5))))
    batch = batch_of(ROWS)
    with torch.no_grad():
        expected = oracle_rows(model, batch)
        assert agrees(packed_log_probs(model.eval(), batch), expected)
        assert not agrees(packed_log_probs(model.train(), batch), expected)
        assert model.training  # scoring changes no mode


def test_C4_scoring_leaves_the_random_state_alone(model: Any) -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        packed_log_probs(model, batch_of(ROWS))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_autocast_stays_near_and_sums_in_float32(model: Any, path: str) -> None:
    batch = batch_of(ROWS)
    expected = oracle_rows(model, batch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = PATHS[path](model, batch)
    assert found.total.dtype == torch.float32
    for total, (exact, tokens) in zip(found.total.tolist(), expected, strict=True):
        assert abs(total - exact) < 0.3 * tokens  # nats; the matrix products are bfloat16


def test_response_logits_are_the_full_forwards_rows_that_predict_the_response(model: Any) -> None:
    batch = batch_of(ROWS)
    expected = []
    with torch.no_grad():
        found = response_logits(model, trees_of(batch))
        for row in range(len(ROWS)):
            alone = one_row(batch, row)
            expected.append(model(alone.input_ids).logits[0, int(alone.prompt_lengths) - 1 : -1])
    assert found.shape == (int(batch.num_response_tokens.sum()), VOCABULARY)
    assert torch.allclose(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_a_plain_model_passes_the_check(model: Any) -> None:
    check_trunk_and_head(model, "tiny")


class ScaledLogits(nn.Module):
    """A model whose forward multiplies the head's logits, its trunk and head left as they are."""

    def __init__(self, inner: Any, factor: float) -> None:
        super().__init__()
        self.inner, self.factor, self.base_model, self.config = inner, factor, inner.base_model, inner.config
        self.kernels = inner.kernels

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, **arguments: Any) -> Any:
        output = self.inner(**arguments)
        output.logits = output.logits * self.factor
        return output


@pytest.mark.parametrize("factor", [0.5, 1.1, 2.0])
def test_scaled_logits_are_refused_by_the_models_name(model: Any, factor: float) -> None:
    with pytest.raises(ConfigError, match="'some/model' changes its logits after the head") as refused:
        check_trunk_and_head(ScaledLogits(model, factor), "some/model")
    assert "\n" not in str(refused.value)


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def in_trees(kind: Any, config: Any, attention: str = TOKEN_TREES) -> Any:
    """A fresh model as `load_model` would give it."""
    model = kind._from_config(config, attn_implementation=attention).eval()
    prepare(model, Kernels())
    return model


@pytest.mark.parametrize("spread", [0.02, 0.5])
def test_a_gemma2_with_a_soft_cap_is_refused(spread: float) -> None:
    """Also with small random weights, where the cap of 30 changes little: training would reach it."""
    torch.manual_seed(0)
    config = Gemma2Config(**SMALL, head_dim=8, initializer_range=spread, final_logit_softcapping=30.0)
    with pytest.raises(ConfigError, match="final_logit_softcapping"):
        check_trunk_and_head(in_trees(Gemma2ForCausalLM, config), "gemma")


@pytest.mark.parametrize("spread", [0.02, 0.5])
def test_a_granite_with_scaled_logits_is_refused(spread: float) -> None:
    torch.manual_seed(0)
    config = GraniteConfig(**SMALL, initializer_range=spread, logits_scaling=8.0)
    with pytest.raises(ConfigError, match="logits_scaling"):
        check_trunk_and_head(in_trees(GraniteForCausalLM, config), "granite")


def qwen2_moe(**window: Any) -> Any:
    """Its attention function is told of no window: transformers' mask alone holds one."""
    torch.manual_seed(0)
    sizes = SMALL | {"vocab_size": VOCABULARY, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    config = Qwen2MoeConfig(**sizes, **window, initializer_range=0.3, num_experts=4, num_experts_per_tok=2)
    return in_trees(Qwen2MoeForCausalLM, config)


def test_B5_a_window_that_stands_in_the_mask_alone_and_is_longer_than_the_probe_is_refused() -> None:
    windowed, batch = qwen2_moe(use_sliding_window=True, sliding_window=12, max_window_layers=2), batch_of([(30, 10)])
    with torch.no_grad():  # what the refusal is for: nothing else would notice
        difference = packed_log_probs(windowed, batch).total - plain_log_probs(windowed, batch).total
    assert difference.abs() > 1
    with pytest.raises(ConfigError, match=r"^model 'moe': its attention uses sliding_attention, which packed batches"):
        check_trunk_and_head(windowed, "moe")


def test_a_mixture_of_experts_without_a_window_passes_the_check() -> None:
    plain, batch = qwen2_moe(), batch_of([(30, 10)])
    check_trunk_and_head(plain, "moe")
    with torch.no_grad():
        assert agrees(packed_log_probs(plain, batch), oracle_rows(plain, batch))


@pytest.mark.parametrize(
    ("limit", "config"),
    [
        ("sliding_window", MistralConfig(**SMALL, sliding_window=7)),
        ("sliding_window", PhimoeConfig(**SMALL, sliding_window=12)),
        ("sliding_window", DogeConfig(**SMALL, sliding_window=12)),
        ("chunked_attention", Llama4TextConfig(**SMALL)),
        ("sliding_attention", Gemma3TextConfig(**SMALL)),
        ("linear_attention", Qwen3NextConfig(**SMALL)),
    ],
)
def test_layers_that_see_a_part_of_what_stands_before_are_refused(limit: str, config: Any) -> None:
    with pytest.raises(ConfigError, match=f"model 'limited': its attention uses {limit}, which packed") as refused:
        refuse_by_config(config, "limited")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config, SmolLM3Config, Qwen2MoeConfig])
def test_layers_that_see_all_that_stands_before_are_not_refused(kind: Any) -> None:
    refuse_by_config(kind(**SMALL), "whole")
    refuse_by_config(MistralConfig(**SMALL, sliding_window=None), "whole")


ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 24},
    "dynamic": {"factor": 4.0},
    "longrope": {
        "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 24,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_a_rope_that_follows_the_longest_row_is_refused_and_others_are_not(kind: str) -> None:
    """Under those, and no others, a row's log-prob changes with its neighbours."""
    torch.manual_seed(0)
    longest = 24 if kind == "dynamic" else 96
    ropes = {"rope_type": kind, "rope_theta": 1e4} | ROPES[kind]
    sizes = SMALL | {"vocab_size": VOCABULARY, "max_position_embeddings": longest}
    model = in_trees(LlamaForCausalLM, LlamaConfig(**sizes, initializer_range=0.3, rope_parameters=ropes))
    batch = batch_of([(6, 8), (20, 20)])
    with torch.no_grad():
        alone, beside = (packed_log_probs(model, rows).total[0] for rows in (one_row(batch, 0), batch))
    if kind in ("dynamic", "longrope"):
        assert (alone - beside).abs() > 0.1
        with pytest.raises(ConfigError, match=rf"^model .roped.: its attention uses {kind} RoPE .*, which") as found:
            check_trunk_and_head(model, "roped")
        assert "\n" not in str(found.value)
    else:
        assert beside.item() == pytest.approx(alone.item(), rel=1e-5)
        check_trunk_and_head(model, "roped")


@pytest.mark.parametrize("ropes", [{"type": "dynamic"}, {"full_attention": {"rope_type": "dynamic"}}])
def test_a_rope_is_found_under_its_old_name_and_layer_by_layer(ropes: dict[str, Any]) -> None:
    config = LlamaConfig(**SMALL)
    config.rope_parameters = ropes
    with pytest.raises(ConfigError, match="dynamic RoPE"):
        refuse_by_config(config, "roped")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("spread", "dtype"), [(0.02, "float32"), (0.5, "float32"), (0.02, "bfloat16")])
def test_a_model_whose_layers_ignore_token_trees_is_refused(attention: str, spread: float, dtype: str) -> None:
    """Also where its weights are small and its logits with them."""
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, initializer_range=spread)
    check_trunk_and_head(in_trees(LlamaForCausalLM, config).to(getattr(torch, dtype)), "right")
    deaf = in_trees(LlamaForCausalLM, config, attention).to(getattr(torch, dtype))
    with pytest.raises(ConfigError, match="'deaf': packed token trees and whole rows give different logits") as refused:
        check_trunk_and_head(deaf, "deaf")
    assert "\n" not in str(refused.value)


def test_a_sixteen_bit_model_passes_the_check(tiny_folder: Path) -> None:
    check_trunk_and_head(load_model(ModelSpec(str(tiny_folder)), "bf16-true"), "tiny")


def stem_unseen(batch: PackedBatch) -> MaskedRows:
    """The layout of trees that do not see what stands before them."""
    *stems, trees = masked_rows(batch).groups
    before = trees.keys.shape[1] - trees.rows.shape[1]
    mask = trees.mask.clone()
    mask[..., :before] = -torch.inf
    return replace(masked_rows(batch), groups=(*stems, replace(trees, mask=mask)))


@pytest.mark.parametrize("mixed", [False, True])
def test_B5_the_check_sees_whether_trees_see_their_stem(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, mixed: bool
) -> None:
    model = load_model(ModelSpec(str(tiny_folder)))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        check_trunk_and_head(model, "tiny")
        monkeypatch.setattr(log_probs, "masked_rows", stem_unseen)
        with pytest.raises(ConfigError, match="give different logits"):
            check_trunk_and_head(model, "tiny")


def test_the_check_runs_the_kernel_of_the_current_autocast(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is wrong in 16 bits alone is found where those are used, and nowhere else."""
    model = load_model(ModelSpec(str(tiny_folder), attention="varlen"))
    monkeypatch.setattr(
        log_probs, "attention_kernel", lambda asked, device, dtype: "varlen" if dtype.itemsize == 2 else "sdpa"
    )
    monkeypatch.setattr(log_probs, "variable_lengths", stem_unseen)
    check_trunk_and_head(model, "tiny")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="give different logits"):
        check_trunk_and_head(model, "tiny")


def test_under_autocast_the_check_finds_what_only_the_weights_own_format_shows(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(ModelSpec(str(tiny_folder)))
    attend = MaskedRows.attend
    monkeypatch.setattr(MaskedRows, "attend", lambda *arguments: attend(*arguments) * 1.05)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match=r"give different logits \(by \d%\)"):
        check_trunk_and_head(model, "tiny")
    monkeypatch.setattr(log_probs, "ROUNDING_FLOAT32", 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        check_trunk_and_head(model, "tiny")


class AdaptedHead(nn.Linear):
    """As adapters wrap a head: a linear layer that adds something to its product."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states) + states.sum(dim=-1, keepdim=True)


def test_B7_a_head_that_is_more_than_a_matrix_is_refused(tiny_folder: Path) -> None:
    model = load_model(ModelSpec(str(tiny_folder)))
    head = AdaptedHead(32, VOCABULARY, bias=False)
    head.weight = model.get_output_embeddings().weight
    model.set_output_embeddings(head)
    with pytest.raises(ConfigError, match="'adapted': its head is a AdaptedHead, expected a plain linear layer"):
        check_trunk_and_head(model, "adapted")


def test_a_model_that_is_not_finite_is_not_called_unsupported(tiny_folder: Path) -> None:
    """Its weights are named elsewhere, which helps more."""
    model = load_model(ModelSpec(str(tiny_folder)))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    check_trunk_and_head(model, "broken")


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "kernel"),
    [
        ("auto", CPU, torch.float32, "sdpa"),
        ("auto", CPU, torch.bfloat16, "sdpa"),
        ("sdpa", CPU, torch.bfloat16, "sdpa"),
        ("auto", CUDA, torch.float32, "sdpa"),
        ("auto", CUDA, torch.bfloat16, "varlen"),
        ("auto", CUDA, torch.float16, "varlen"),
        ("varlen", CUDA, torch.bfloat16, "varlen"),
        ("sdpa", CUDA, torch.bfloat16, "sdpa"),
    ],
)
def test_the_kernel_that_runs(asked: Any, device: torch.device, dtype: torch.dtype, kernel: str) -> None:
    assert attention_kernel(asked, device, dtype) == kernel


@pytest.mark.parametrize(("device", "dtype"), [(CPU, torch.bfloat16), (CUDA, torch.float32)])
def test_varlen_where_it_does_not_run_is_refused(device: torch.device, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=f"attention varlen: needs .* this is {device.type} in {dtype}"):
        attention_kernel("varlen", device, dtype)


def test_the_models_own_kernels_are_used_and_said(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(ModelSpec(str(tiny_folder), attention="varlen", chunk_tokens=3))
    with pytest.raises(ConfigError, match="attention varlen"):
        packed_log_probs(model, batch_of(ROWS))
    model.kernels = Kernels("auto", 3)
    assert describe_kernels(model) == "attention sdpa, head in chunks of 3 predictions"
    model.kernels = Kernels()
    assert "chunks of 48582 predictions" in describe_kernels(model)  # 48 MiB of 4 x 259 bytes
    held: list[int] = []
    expected, head, plain = oracle_rows(model, batch_of(ROWS)), model.get_output_embeddings().weight, F.linear

    def watched(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        held.extend([len(states)] if weight.data_ptr() == head.data_ptr() else [])
        return plain(states, weight, bias)

    monkeypatch.setattr(F, "linear", watched)
    for chunk_tokens, largest in ((1, 1), (3, 3), (1000, sum(response for _, response in ROWS))):
        model.kernels = Kernels("sdpa", chunk_tokens)
        held.clear()
        with torch.no_grad():
            assert agrees(packed_log_probs(model, batch_of(ROWS)), expected)
        assert max(held) == largest


def test_the_kernel_is_chosen_by_what_attention_is_computed_in(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast's format where there is one: varlen takes float32 weights in bf16-mixed."""
    asked: list[torch.dtype] = []

    def watched(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
        asked.append(dtype)
        return "sdpa"

    monkeypatch.setattr(log_probs, "attention_kernel", watched)
    wide, narrow = (load_model(ModelSpec(str(tiny_folder)), precision) for precision in ("32-true", "bf16-true"))
    with torch.no_grad():
        packed_log_probs(wide, batch_of(ROWS))
        packed_log_probs(narrow, batch_of(ROWS))
        with torch.autocast("cpu", torch.bfloat16):
            packed_log_probs(wide, batch_of(ROWS))
    assert asked == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_no_mask_over_all_packed_tokens_is_built(tiny_folder: Path) -> None:
    """It would grow with the square of a micro-batch, for nobody."""
    model = load_model(ModelSpec(str(tiny_folder)))
    sizes: list[int] = []

    def watch(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        mask = keywords["attention_mask"]
        sizes.append(0 if mask is None else mask.numel())

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(watch, with_kwargs=True)
    with torch.no_grad():
        packed_log_probs(model, batch_of(ROWS))
    assert len(sizes) == 4
    assert max(sizes) <= 1
