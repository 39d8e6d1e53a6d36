"""Chunked log-probs with a backward pass of their own, against float64 loops and against the readable kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_dadpo.logprobs import default_chunk_tokens, linear_log_probs, token_log_probs
from tests import oracles

WIDTH, VOCABULARY, PREDICTIONS = 5, 11, 7
Kernel = Callable[[Tensor, Tensor, Tensor | None, Tensor, int | None], Tensor]

CHUNKS = [1, 3, PREDICTIONS, 1000, None]  # one by one, not dividing, exactly all, more than all, what suits the device

# (weights, autocast): tolerance of values and of gradients, against float64 from the same rounded numbers
FORMATS: dict[str, tuple[torch.dtype, bool, float, float]] = {
    "float64": (torch.float64, False, 1e-12, 1e-12),
    "float32": (torch.float32, False, 1e-5, 1e-5),
    "bfloat16": (torch.bfloat16, False, 1e-5, 2e-2),  # gradients pass through a bfloat16 matrix product
    "autocast": (torch.float32, True, 1e-5, 2e-2),
}


class Problem:
    """Hidden states, a head and targets, each prediction with a coefficient of its own (trap B9)."""

    def __init__(self, dtype: torch.dtype, bias: bool, predictions: int = PREDICTIONS, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

        self.hidden, self.weight = drawn(predictions, WIDTH), drawn(VOCABULARY, WIDTH)
        self.bias = drawn(VOCABULARY) if bias else None
        self.targets = torch.randint(VOCABULARY, (predictions,), generator=generator)
        self.coefficients = torch.randn(predictions, generator=generator, dtype=torch.float64)
        if predictions:
            self.coefficients[predictions // 2] = 0.0

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.weight] + ([] if self.bias is None else [self.bias])

    def run(self, kernel: Kernel, chunk: int | None) -> tuple[Tensor, list[Tensor]]:
        """Values, and gradients of the sum weighted by the coefficients."""
        values = kernel(self.hidden, self.weight, self.bias, self.targets, chunk)
        gradients = torch.autograd.grad((values * self.coefficients.to(values.dtype)).sum(), self.leaves)
        return values.detach(), list(gradients)


def logits_of(problem: Problem, autocast: bool) -> Tensor:
    """As the head's own dtype gives them: the matrix product is not what is proved here."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return F.linear(problem.hidden, problem.weight, problem.bias).double()


def oracle(problem: Problem, autocast: bool) -> tuple[list[float], list[Tensor]]:
    """Values and gradients in Python, id by id: d log p(y) / d logit_v = [v = y] - p(v)."""
    logits = logits_of(problem, autocast).tolist()
    values = [oracles.log_softmax(row)[y] for row, y in zip(logits, problem.targets.tolist(), strict=True)]
    hidden, weight = problem.hidden.double().tolist(), problem.weight.double().tolist()
    by_hidden = [[0.0] * WIDTH for _ in hidden]
    by_weight, by_bias = [[0.0] * WIDTH for _ in weight], [0.0] * VOCABULARY
    for at, (row, y, coefficient) in enumerate(
        zip(logits, problem.targets.tolist(), problem.coefficients.tolist(), strict=True)
    ):
        for v, probability in enumerate(oracles.softmax(row)):
            slope = coefficient * ((v == y) - probability)
            by_bias[v] += slope
            for d in range(WIDTH):
                by_hidden[at][d] += slope * weight[v][d]
                by_weight[v][d] += slope * hidden[at][d]
    gradients = [torch.tensor(part, dtype=torch.float64) for part in (by_hidden, by_weight, by_bias)]
    return values, gradients[: len(problem.leaves)]


def agrees(kernel: Kernel, bias: bool, form: str, chunk: int | None, seed: int = 0) -> bool:
    """The check that this kernel has to pass, and defects have to fail."""
    dtype, autocast, by_value, by_gradient = FORMATS[form]
    problem = Problem(dtype, bias, seed=seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values, gradients = problem.run(kernel, chunk)
    expected, expected_gradients = oracle(problem, autocast)
    return values.tolist() == pytest.approx(expected, rel=by_value, abs=by_value) and all(
        torch.allclose(found.double(), wanted, rtol=by_gradient, atol=by_gradient * wanted.abs().max().item())
        for found, wanted in zip(gradients, expected_gradients, strict=True)
    )


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_B9_values_and_gradients_equal_the_oracle_with_a_coefficient_for_each_prediction(
    form: str, bias: bool, chunk: int | None
) -> None:
    assert agrees(linear_log_probs, bias, form, chunk)


@pytest.mark.parametrize("form", FORMATS)
def test_formats_of_what_comes_out(form: str) -> None:
    dtype, autocast, _, _ = FORMATS[form]
    problem = Problem(dtype, bias=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values, gradients = problem.run(linear_log_probs, 3)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3


@pytest.mark.parametrize("bias", [False, True])
def test_the_backward_pass_is_that_of_the_forward_pass(bias: bool) -> None:
    problem = Problem(torch.float64, bias)
    for chunk in (1, 3, 1000):
        assert torch.autograd.gradcheck(
            lambda *leaves, size=chunk: linear_log_probs(
                leaves[0], leaves[1], leaves[2] if bias else None, problem.targets, size
            ),
            problem.leaves,
        )


@pytest.mark.parametrize("form", FORMATS)
def test_it_equals_the_readable_kernel(form: str) -> None:
    dtype, autocast, by_value, by_gradient = FORMATS[form]

    def readable(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None) -> Tensor:
        return token_log_probs(F.linear(hidden, weight, bias), targets)

    problem = Problem(dtype, bias=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (values, gradients), (plain, plain_gradients) = (problem.run(one, 3) for one in (linear_log_probs, readable))
    assert torch.allclose(values, plain, rtol=by_value, atol=by_value)
    for found, wanted in zip(gradients, plain_gradients, strict=True):
        assert torch.allclose(found, wanted, rtol=by_gradient, atol=by_gradient * wanted.abs().max().item())


def test_no_predictions_give_no_values_and_gradients_of_zero() -> None:
    problem = Problem(torch.float32, bias=True, predictions=0)
    values, gradients = problem.run(linear_log_probs, 3)
    assert values.shape == (0,)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in problem.leaves]
    assert all(not gradient.any() for gradient in gradients)


def test_large_logits_neither_overflow_nor_lose_the_target() -> None:
    problem = Problem(torch.float32, bias=False)
    with torch.no_grad():
        problem.weight.mul_(200)
    values, gradients = problem.run(linear_log_probs, 3)
    expected, expected_gradients = oracle(problem, autocast=False)
    assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert min(expected) < -500
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(found.double(), wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


class Defective(torch.autograd.Function):
    """Right values; a backward pass that takes every coefficient for 1."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, by_value: Tensor) -> Tensor:  # type: ignore[override]
        return torch.ones_like(by_value)


def test_B9_a_backward_that_ignores_its_coefficients_is_noticed() -> None:
    def defective(*arguments: object) -> Tensor:
        result: Tensor = Defective.apply(linear_log_probs(*arguments))  # type: ignore[arg-type, no-untyped-call]
        return result

    assert not agrees(defective, False, "float64", 3)


def test_B2_a_log_softmax_in_bfloat16_is_noticed() -> None:
    def defective(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(hidden.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16())
            return F.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1).float()

    for form in ("bfloat16", "autocast"):
        assert agrees(linear_log_probs, True, form, 3)
        assert not agrees(defective, True, form, 3)


def test_B2_the_heads_matrix_product_keeps_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, plain = [], F.linear

    def watched(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append((states.dtype, weight.dtype, len(states)))
        return plain(states, weight, bias)

    monkeypatch.setattr(F, "linear", watched)
    problem = Problem(torch.bfloat16, bias=False)
    problem.run(linear_log_probs, 3)
    assert {(states, weight) for states, weight, _ in seen} == {(torch.bfloat16, torch.bfloat16)}
    assert [rows for _, _, rows in seen] == [3, 3, 1, 3, 3, 1]  # never more than a chunk, forward and backward


def test_B7_a_tied_weight_gets_what_reaches_it_from_both_ends() -> None:
    """A trunk that looks ids up and squashes them, its head the same table; against the readable kernel."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    ids, targets = torch.arange(PREDICTIONS), torch.arange(PREDICTIONS).flip(0)
    coefficients = torch.randn(PREDICTIONS, generator=generator, dtype=torch.float64)

    def gradient(kernel: Kernel, head: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            (kernel(table[ids].tanh(), head, None, targets, 3) * coefficients).sum(), [table]
        )
        return found

    def readable(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None) -> Tensor:
        return token_log_probs(F.linear(hidden, weight, bias), targets)

    whole = gradient(readable, table)
    assert torch.allclose(gradient(linear_log_probs, table), whole, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(gradient(linear_log_probs, table.detach()), whole, rtol=1e-2)  # one end is not enough


def saved_shapes(run: Callable[[], Tensor]) -> list[tuple[int, ...]]:
    """Shapes of every tensor that autograd keeps for the backward pass."""
    shapes = []

    def keep(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return shapes


@pytest.mark.parametrize("form", FORMATS)
def test_no_logits_are_kept_for_the_backward_pass(form: str) -> None:
    dtype, autocast, _, _ = FORMATS[form]
    problem = Problem(dtype, bias=True)
    arguments = (problem.hidden, problem.weight, problem.bias, problem.targets)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        kept = saved_shapes(lambda: linear_log_probs(*arguments, chunk_tokens=3))
        plain = saved_shapes(lambda: token_log_probs(F.linear(*arguments[:3]), problem.targets))
    assert sorted(kept) == sorted([(7, 5), (11, 5), (11,), (7,), (7,)])  # leaves, targets, one log-sum-exp each
    assert any(shape == (PREDICTIONS, VOCABULARY) for shape in plain)  # what the check is there to find


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The shapes of all matrix products that run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            self.products.append(tuple(out.shape))
        return out


@pytest.mark.parametrize(
    ("hidden", "weight", "bias"), [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
def test_no_gradient_is_made_that_nobody_wants(hidden: bool, weight: bool, bias: bool) -> None:
    problem, reference = Problem(torch.float64, bias=True), Problem(torch.float64, bias=True)
    _, expected = reference.run(linear_log_probs, 3)
    assert problem.bias is not None
    wanted = list(zip(problem.leaves, (hidden, weight, bias), strict=True))
    for leaf, wants in wanted:
        leaf.requires_grad_(wants)
    values = linear_log_probs(problem.hidden, problem.weight, problem.bias, problem.targets, 1000)
    counting = Counting()
    with counting:
        (values * problem.coefficients).sum().backward()  # type: ignore[no-untyped-call]
    made = [tuple(leaf.shape) for leaf, wants in wanted[:2] if wants]
    assert sorted(counting.products) == sorted([(PREDICTIONS, VOCABULARY), *made])  # the logits again, and these
    for (leaf, wants), gradient in zip(wanted, expected, strict=True):
        assert (leaf.grad is not None) == wants
        assert leaf.grad is None or torch.allclose(leaf.grad, gradient, rtol=1e-12)


def test_without_gradients_nothing_is_kept() -> None:
    problem = Problem(torch.float32, bias=False)
    with torch.no_grad():
        values = linear_log_probs(problem.hidden, problem.weight, None, problem.targets, 3)
    assert not values.requires_grad


def test_a_second_derivative_is_refused() -> None:
    """It would go through a log-sum-exp that is kept as a plain number."""
    problem = Problem(torch.float64, bias=False)
    values = linear_log_probs(problem.hidden, problem.weight, None, problem.targets, 3)
    (gradient,) = torch.autograd.grad(values.exp().sum(), [problem.hidden], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("around", [nullcontext(), torch.autocast("cpu", torch.bfloat16)])
def test_autocast_around_the_backward_pass_alone_changes_nothing(around: AbstractContextManager[object]) -> None:
    problem = Problem(torch.float32, bias=True)
    values = linear_log_probs(problem.hidden, problem.weight, problem.bias, problem.targets, 3)
    weighted = (values * problem.coefficients.float()).sum()
    with around:
        gradients = torch.autograd.grad(weighted, problem.leaves)
    _, expected = oracle(problem, autocast=False)
    for found, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_the_weights_gradient_is_summed_over_chunks_in_float32() -> None:
    """600 equal addends, a chunk each: a bfloat16 sum stops at 256 of them."""
    count = 600
    hidden = torch.ones(count, 1, dtype=torch.bfloat16)
    weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.bfloat16))
    linear_log_probs(hidden, weight, None, torch.zeros(count, dtype=torch.long), 1).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [300.0, -300.0]  # (1 - 1/2) each


def test_the_default_chunk_follows_vocabulary_and_device() -> None:
    assert default_chunk_tokens(49152, torch.device("cpu")) == 256  # 48 MiB of float32
    assert default_chunk_tokens(49152, torch.device("cuda")) == 2730  # 512 MiB
    assert default_chunk_tokens(10**9, torch.device("cpu")) == 16
    assert default_chunk_tokens(49152, torch.device("meta")) == 256


def test_shapes_that_contradict_one_another_are_refused_where_types_are_checked() -> None:
    problem = Problem(torch.float32, bias=True)
    with pytest.raises(jaxtyping.TypeCheckError):
        linear_log_probs(problem.hidden, problem.weight, problem.bias, problem.targets[:-1])
    with pytest.raises(jaxtyping.TypeCheckError):
        linear_log_probs(problem.hidden, problem.weight, problem.hidden[0], problem.targets)
