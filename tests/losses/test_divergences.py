from __future__ import annotations

import math

import pytest
import torch

from lightning_dadpo.losses import kl_divergence
from tests import oracles


def logits(positions: int, vocabulary: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("positions", [0, 1, 7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 2e-5)]
)
def test_equals_the_float64_oracle(dtype: torch.dtype, tolerance: float, positions: int) -> None:
    p, q = logits(positions, 13, 1, dtype), logits(positions, 13, 2, dtype)
    expected = [oracles.kl_divergence(a, b) for a, b in zip(p.double().tolist(), q.double().tolist(), strict=True)]
    found = kl_divergence(p, q)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_forward_is_not_reverse() -> None:
    p, q = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[0.0, math.log(3)]]).double()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(q, p).item() == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_zero_on_equal_logits_and_never_negative(dtype: torch.dtype) -> None:
    p = logits(50, 300, 3, dtype)
    assert kl_divergence(p, p).tolist() == [0.0] * 50
    near = p.float() + 1e-6 * logits(50, 300, 4, torch.float32)
    assert kl_divergence(p.float(), near).min() >= 0


def test_a_constant_on_all_logits_of_a_position_changes_nothing() -> None:
    p, q = logits(5, 9, 1), logits(5, 9, 2)
    assert kl_divergence(p + 100, q - 7).tolist() == pytest.approx(kl_divergence(p, q).tolist())


def test_differently_padded_vocabularies_are_compared_on_the_common_ids() -> None:
    p, q = logits(3, 12, 1), logits(3, 9, 2)
    assert kl_divergence(p, q).tolist() == pytest.approx(kl_divergence(p[:, :9], q).tolist())
    assert kl_divergence(q, p).tolist() == pytest.approx(kl_divergence(q, p[:, :9]).tolist())


def test_the_gradient_by_the_second_logits_is_q_minus_p() -> None:
    p, q = logits(2, 5, 1), logits(2, 5, 2).requires_grad_()
    coefficients = [0.5, 3.0]
    (kl_divergence(p, q) * torch.tensor(coefficients, dtype=torch.float64)).sum().backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None
    for row, coefficient in enumerate(coefficients):
        p_row, q_row = oracles.softmax(p[row].tolist()), oracles.softmax(q[row].tolist())
        expected = [coefficient * (b - a) for a, b in zip(p_row, q_row, strict=True)]
        assert q.grad[row].tolist() == pytest.approx(expected, abs=1e-12)
