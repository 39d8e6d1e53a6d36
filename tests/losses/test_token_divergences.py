"""Jensen-Shannon and skew divergences: float64 loops, worked numbers, TRL's generalised JSD, and planted defects."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import (
    ForwardKL,
    JensenShannon,
    ResponseNLL,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TokenDivergence,
    WeightedTerm,
    jensen_shannon_divergence,
    kl_divergence,
    skew_kl_divergence,
    skew_reverse_kl_divergence,
)
from lightning_dadpo.types import SequenceLogProbs
from tests import oracles

Rows = list[float]

CASES: dict[str, tuple[TokenDivergence, Callable[[Rows, Rows], float]]] = {
    "forward": (ForwardKL(), oracles.kl_divergence),
    "reverse": (ReverseKL(), lambda te, st: oracles.kl_divergence(st, te)),
    **{
        f"js {beta}": (JensenShannon(beta), partial(oracles.jensen_shannon, beta=beta))
        for beta in (0.0, 0.1, 0.5, 0.9, 1.0)
    },
    "skew forward": (
        SkewForwardKL(0.1),
        lambda te, st: oracles.kl_divergence(te, oracles.mixture_logits(te, st, 0.1)),
    ),
    "skew reverse": (
        SkewReverseKL(0.1),
        lambda te, st: oracles.kl_divergence(st, oracles.mixture_logits(te, st, 0.9)),
    ),
}


def logits(seed: int, positions: int = 6, vocabulary: int = 11, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
def test_equals_the_float64_oracle(name: str, dtype: torch.dtype, tolerance: float) -> None:
    divergence, oracle = CASES[name]
    teacher, student = logits(1, dtype=dtype), logits(2, dtype=dtype)
    found = divergence.at_positions(teacher, student)
    assert found.dtype == dtype
    expected = [oracle(te, st) for te, st in zip(teacher.double().tolist(), student.double().tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_equals_finite_differences_of_the_oracle(name: str) -> None:
    divergence, oracle = CASES[name]
    teacher, student = logits(3, 2, 5), logits(4, 2, 5).requires_grad_()
    coefficients = [0.5, -2.0]
    (divergence.at_positions(teacher, student) * torch.tensor(coefficients, dtype=torch.float64)).sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    for row, coefficient in enumerate(coefficients):
        te, st = teacher[row].tolist(), student[row].tolist()
        for column in range(5):
            up, down = (
                [value + shift * (index == column) for index, value in enumerate(st)] for shift in (1e-5, -1e-5)
            )
            expected = coefficient * (oracle(te, up) - oracle(te, down)) / 2e-5
            assert student.grad[row, column].item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_is_zero_at_the_teacher_never_negative_and_blind_to_constants(name: str) -> None:
    divergence, _ = CASES[name]
    teacher, student = logits(5, dtype=torch.float32), logits(6, dtype=torch.float32)
    assert divergence.at_positions(teacher, teacher).abs().max() < 1e-6
    near = teacher + 1e-6 * student
    assert divergence.at_positions(teacher, near).min() >= 0
    moved = divergence.at_positions(teacher + 30, student - 7)
    assert moved.tolist() == pytest.approx(divergence.at_positions(teacher, student).tolist(), rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_vocabularies_of_other_widths_are_compared_on_the_common_ids(name: str) -> None:
    divergence, _ = CASES[name]
    wide, narrow = logits(7, vocabulary=14), logits(8, vocabulary=11)
    cut = divergence.at_positions(wide[:, :11], narrow)
    assert divergence.at_positions(wide, narrow).tolist() == pytest.approx(cut.tolist())
    other = divergence.at_positions(narrow, wide[:, :11])
    assert divergence.at_positions(narrow, wide).tolist() == pytest.approx(other.tolist())


def test_worked_numbers() -> None:
    """Teacher (1/2, 1/2), student (1/4, 3/4); M = (3/8, 5/8) at beta 1/2."""
    teacher = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    to_mixture = 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    from_student = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
    half = jensen_shannon_divergence(teacher, student, 0.5)
    assert half.item() == pytest.approx(0.5 * to_mixture + 0.5 * from_student)
    skewed = skew_kl_divergence(teacher, student, 0.1)  # mixture (0.275, 0.725)
    assert skewed.item() == pytest.approx(0.5 * math.log(0.5 / 0.275) + 0.5 * math.log(0.5 / 0.725))
    reverse = skew_reverse_kl_divergence(teacher, student, 0.1)  # mixture (0.475, 0.525)
    assert reverse.item() == pytest.approx(0.25 * math.log(0.25 / 0.475) + 0.75 * math.log(0.75 / 0.525))


def test_jensen_shannon_becomes_the_two_kls_at_its_ends() -> None:
    teacher, student = logits(9), logits(10)
    nearly = jensen_shannon_divergence(teacher, student, 1e-6) / 1e-6
    assert nearly.tolist() == pytest.approx(kl_divergence(teacher, student).tolist(), rel=2e-2)
    nearly = jensen_shannon_divergence(teacher, student, 1 - 1e-6) / 1e-6
    assert nearly.tolist() == pytest.approx(kl_divergence(student, teacher).tolist(), rel=2e-2)
    assert skew_kl_divergence(teacher, student, 0.0).tolist() == kl_divergence(teacher, student).tolist()
    assert skew_reverse_kl_divergence(teacher, student, 0.0).tolist() == kl_divergence(student, teacher).tolist()


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
def test_equals_trl_on_the_same_logits(beta: float) -> None:
    """TRL's GKD adds up over positions under `reduction="sum"`."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    teacher, student = logits(11, dtype=torch.float32), logits(12, dtype=torch.float32)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
    ours = jensen_shannon_divergence(teacher, student, beta).sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_below_the_least_number_stay_finite(dtype: torch.dtype) -> None:
    teacher = torch.tensor([[0.0, -300.0, -2.0]], dtype=dtype)
    student = torch.tensor([[-300.0, 0.0, -2.0]], dtype=dtype).requires_grad_()
    for divergence, _ in CASES.values():
        value = divergence.at_positions(teacher, student)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert bool(value.isfinite().all())
        assert bool(gradient.isfinite().all())


def test_a_response_counts_its_mean_over_tokens() -> None:
    policy = SequenceLogProbs(torch.tensor([-6.0, -10.0]), torch.tensor([3, 4]))
    assert ResponseNLL()(policy, None).tolist() == [2.0, 2.5]
    assert ReverseKL()(policy, torch.tensor([0.6, 2.0])).tolist() == pytest.approx([0.2, 0.5])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: JensenShannon(1.1), r"JensenShannon: beta 1.1, expected a number in \[0, 1\]"),
        (lambda: SkewForwardKL(1.0), r"SkewForwardKL: alpha 1.0, expected a number in \[0, 1\)"),
        (lambda: SkewReverseKL(-0.1), r"SkewReverseKL: alpha -0.1"),
        (lambda: WeightedTerm(0.0, ResponseNLL()), r"terms: weight 0.0, expected a number > 0"),
        (lambda: WeightedTerm(math.nan, ResponseNLL()), r"terms: weight nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()
