"""Varlen attention on a GPU against SDPA on the same model, in bfloat16: values and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_dadpo.data.batching import collate_sequences
from lightning_dadpo.data.packing import pack
from lightning_dadpo.models import log_probs
from lightning_dadpo.models.attention import TOKEN_TREES, variable_lengths
from lightning_dadpo.models.log_probs import Kernels, check_trunk_and_head, model_log_probs, plain_log_probs, prepare
from lightning_dadpo.types import PackedBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

VOCABULARY = 128
SIZES = [(50, 70, 40), (7, 1, 33), (1, 20, 1), (200, 130, 150)]  # prompt, chosen, rejected
STEM, BEHIND_IT = 40, (1, 2)
"""Tokens that stand before these prompts in common."""


def fresh(key_heads: int) -> Any:
    """A random Llama with heads of 64, float32 weights on the GPU."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=key_heads, initializer_range=0.08, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(config, attn_implementation=TOKEN_TREES).float().cuda().eval()


def rows() -> tuple[list[list[int]], list[list[list[int]]]]:
    """Pairs of very different sizes, one of them shared into its responses, two behind one stem."""
    generator = torch.Generator().manual_seed(1)
    drawn = [[torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in size] for size in SIZES]
    drawn[0][2][:10] = drawn[0][1][:10]
    stem = torch.randint(3, VOCABULARY, (STEM,), generator=generator).tolist()
    for number in BEHIND_IT:
        drawn[number][0][:0] = stem
    return [prompt for prompt, _, _ in drawn], [[chosen, rejected] for _, chosen, rejected in drawn]


def run(model: Any, attention: Any, batch: PackedBatch, mixed: bool) -> tuple[Tensor, Tensor]:
    """Totals and all gradients in one vector, each sequence with its own coefficient."""
    prepare(model, Kernels(attention))
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        total = model_log_probs(model, batch.to("cuda")).total
    coefficients = torch.linspace(-1, 1.3, len(total), device="cuda")
    (total * coefficients).sum().backward()  # type: ignore[no-untyped-call]
    return total.detach(), torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()])


def distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("mixed", [False, True])
def test_varlen_is_as_near_to_float32_as_sdpa_in_values_and_gradients(key_heads: int, mixed: bool) -> None:
    """bf16-true, and bf16-mixed, where rotary embeddings leave query and key in float32."""
    model, batch = fresh(key_heads), pack(*rows())
    assert (STEM, len(BEHIND_IT)) in batch.stems
    exact, exact_gradient = run(model, "sdpa", batch, mixed=False)
    if not mixed:
        model = model.bfloat16()
    totals, gradients = zip(*(run(model, attention, batch, mixed) for attention in ("sdpa", "varlen")), strict=True)
    of_sdpa, of_varlen = (distance(total, exact) for total in totals)
    assert of_varlen < max(2 * of_sdpa, 1e-3)
    of_sdpa, of_varlen = (distance(gradient, exact_gradient) for gradient in gradients)
    assert of_sdpa < 0.1
    assert of_varlen < 2 * of_sdpa
    assert float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.995


def test_varlen_equals_separate_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, responses = rows()
    model = fresh(2).bfloat16()
    prepare(model, Kernels("varlen"))
    batch = collate_sequences(prompts * 2, [group[number] for number in (0, 1) for group in responses]).to("cuda")
    with torch.no_grad():
        found = model_log_probs(model, pack(prompts, responses).to("cuda")).total
        expected = plain_log_probs(model, batch).total
    noise = distance(found, expected)
    assert noise < 0.01

    def wrong(trees: PackedBatch) -> Any:
        right = variable_lengths(trees)
        return replace(right, keys=right.keys.roll(1))

    monkeypatch.setattr(log_probs, "variable_lengths", wrong)
    with torch.no_grad():
        defective = model_log_probs(model, pack(prompts, responses).to("cuda")).total
    assert distance(defective, expected) > 5 * noise


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_a_sixteen_bit_model_passes_the_check(attention: Any) -> None:
    model = fresh(2).bfloat16()
    prepare(model, Kernels(attention))
    check_trunk_and_head(model, "random")
