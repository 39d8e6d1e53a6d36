"""Chunked distances from hidden states against float64 loops, with a coefficient for each prediction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_dadpo.logprobs import Predictor, linear_divergences
from tests import oracles

PREDICTIONS, VOCABULARY, TEACHER_VOCABULARY = 7, 11, 13
CHUNKS = [1, 3, PREDICTIONS, 1000, None]
Rows = list[float]


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    te, st = teacher[:, :VOCABULARY].float().log_softmax(-1), student.float().log_softmax(-1)
    if teacher.dtype == torch.float64:
        te, st = teacher[:, :VOCABULARY].log_softmax(-1), student.log_softmax(-1)
    return (te.exp() * (te - st)).sum(-1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    return forward_kl(F.pad(student, (0, TEACHER_VOCABULARY - VOCABULARY)), teacher[:, :VOCABULARY])


DIVERGENCES = [forward_kl, reverse_kl]
ORACLES: list[Callable[[Rows, Rows], float]] = [
    lambda te, st: oracles.kl_divergence(te[:VOCABULARY], st),
    lambda te, st: oracles.kl_divergence(st, te[:VOCABULARY]),
]


class Problem:
    def __init__(self, dtype: torch.dtype = torch.float64, bias: bool = True, predictions: int = PREDICTIONS) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.teacher = Predictor(drawn(predictions, 6), drawn(TEACHER_VOCABULARY, 6), drawn(TEACHER_VOCABULARY))
        self.hidden, self.weight = drawn(predictions, 5).requires_grad_(), drawn(VOCABULARY, 5).requires_grad_()
        self.bias = drawn(VOCABULARY).requires_grad_() if bias else None
        self.coefficients = torch.randn(2, predictions, generator=generator, dtype=torch.float64)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.weight] + ([] if self.bias is None else [self.bias])

    def run(self, chunk: int | None) -> tuple[Tensor, list[Tensor]]:
        student = Predictor(self.hidden, self.weight, self.bias)
        values = linear_divergences(student, self.teacher, DIVERGENCES, chunk)
        gradients = torch.autograd.grad((values * self.coefficients.to(values.dtype)).sum(), self.leaves)
        return values.detach(), list(gradients)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_B9_values_and_gradients_equal_the_oracle(chunk: int | None, bias: bool) -> None:
    problem = Problem(bias=bias)
    values, gradients = problem.run(chunk)

    def logits(*leaves: Tensor) -> Tensor:
        return F.linear(leaves[0], leaves[1], leaves[2] if bias else None)

    teacher = F.linear(problem.teacher.states, problem.teacher.weight, problem.teacher.bias).tolist()
    own = logits(*problem.leaves)
    for row, oracle in enumerate(ORACLES):
        expected = [oracle(te, st) for te, st in zip(teacher, own.tolist(), strict=True)]
        assert values[row].tolist() == pytest.approx(expected, rel=1e-12)

    def total(leaves: list[Tensor]) -> float:
        rows = zip(teacher, logits(*leaves).tolist(), problem.coefficients.T.tolist(), strict=True)
        return sum(c * oracle(te, st) for te, st, cs in rows for c, oracle in zip(cs, ORACLES, strict=True))

    for number, gradient in enumerate(gradients):
        for place in ((0,) * gradient.dim(), tuple(size - 1 for size in gradient.shape)):
            ends = []
            for shift in (1e-6, -1e-6):
                moved = [leaf.detach().clone() for leaf in problem.leaves]
                moved[number][place] += shift
                ends.append(total(moved))
            assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_chunks_change_nothing_and_the_teacher_gets_no_gradient() -> None:
    problem = Problem()
    problem.teacher.states.requires_grad_()
    problem.teacher.weight.requires_grad_()
    whole, by_whole = problem.run(1000)
    for chunk in (1, 2, 3):
        values, gradients = problem.run(chunk)
        assert torch.allclose(values, whole, rtol=1e-12)
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(gradients, by_whole, strict=True))
    assert problem.teacher.states.grad is None
    assert problem.teacher.weight.grad is None


@pytest.mark.parametrize("predictions", [0, 1])
def test_no_prediction_and_one(predictions: int) -> None:
    values, gradients = Problem(predictions=predictions).run(None)
    assert values.shape == (2, predictions)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_under_autocast_products_are_bfloat16_and_everything_else_float32() -> None:
    problem, exact = Problem(torch.float32), Problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        values, gradients = problem.run(3)
    expected, by_exact = exact.run(1000)
    assert values.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3
    assert torch.allclose(values, expected, rtol=0.05, atol=0.05)
    for found, wanted in zip(gradients, by_exact, strict=True):
        assert torch.allclose(found, wanted, rtol=0.1, atol=0.1 * float(wanted.abs().max()))


def test_under_autocast_the_weights_gradient_is_summed_over_chunks_in_float32() -> None:
    """600 equal addends, a chunk each: a bfloat16 sum stops at 128."""
    count = 600
    ones, weight, bias = torch.ones(count, 1), torch.zeros(2, 1).requires_grad_(), torch.zeros(2).requires_grad_()
    teacher = Predictor(ones, torch.zeros(2, 1), None)
    with torch.autocast("cpu", torch.bfloat16):
        surprise = linear_divergences(
            Predictor(ones, weight, bias), teacher, [lambda te, st: -st.float().log_softmax(-1)[:, 0]], 1
        )
    surprise.sum().backward()  # type: ignore[no-untyped-call]
    for found in (weight.grad, bias.grad):
        assert found is not None
        assert found.flatten().tolist() == [-300.0, 300.0]  # 1/2 each


def test_no_more_logits_than_one_chunks_are_ever_in_memory() -> None:
    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
            made = function(*arguments, **(keywords or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                if isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.shape[1] in (VOCABULARY, 13):
                    self.rows = max(self.rows, tensor.shape[0])
            return made

    seen = []
    for chunk in (4, 1000):
        with Largest() as largest:
            Problem(predictions=40).run(chunk)
        seen.append(largest.rows)
    assert seen == [6, 40]  # 6 is the teacher's weight, transposed
