"""The packed kernel against the readable one on separate rows, and against the float64 oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dadpo.data.batching import collate_sequences
from lightning_dadpo.data.packing import pack
from lightning_dadpo.logprobs import packed_log_probs, sequence_log_probs
from lightning_dadpo.types import PackedBatch, SequenceLogProbs
from tests import oracles
from tests.trees import history

WIDTH, VOCABULARY = 5, 11
PROMPTS = [[3, 4, 5], [6], [7, 8]]
RESPONSES = [
    [[9, 10, 2], [9, 10, 4, 5, 2]],  # shared into the responses
    [[2], [5, 6, 2]],  # one token beside several
    [[3, 4, 2], [3, 4, 2]],  # equal
]
COEFFICIENTS = [0.7, -1.3, 2.9, 0.0, 1.1, -0.4]
FORMATS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-5, 2e-2)}


class Problem:
    """A trunk whose state at a token depends on the ids up to it alone, so that both layouts have the same states."""

    def __init__(self, dtype: torch.dtype, bias: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch = pack(PROMPTS, RESPONSES)
        self.prompts = PROMPTS * 2
        self.responses = [group[number] for number in (0, 1) for group in RESPONSES]
        self.rows = collate_sequences(self.prompts, self.responses)
        self.states: dict[tuple[int, ...], Tensor] = {}
        self.generator, self.dtype = generator, dtype
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def state(self, ids: Sequence[int]) -> Tensor:
        """A leaf for every history; the same one wherever that history stands."""
        if tuple(ids) not in self.states:
            drawn = torch.randn(WIDTH, generator=self.generator, dtype=torch.float64).to(self.dtype)
            self.states[tuple(ids)] = drawn.requires_grad_()
        return self.states[tuple(ids)]

    def packed(self, batch: PackedBatch | None = None, chunk: int | None = None) -> SequenceLogProbs:
        hidden = [self.state(history(self.batch, index)) for index in range(self.batch.num_tokens)]
        return packed_log_probs(
            torch.stack(hidden), self.head.weight, self.head.bias, batch or self.batch, chunk_tokens=chunk
        )

    def separate(self) -> SequenceLogProbs:
        width = self.rows.input_ids.shape[1]
        padding = torch.full((WIDTH,), 1e3, dtype=self.dtype)  # never read
        rows = [
            torch.stack([self.state(ids[: end + 1]) if end < len(ids) else padding for end in range(width)])
            for ids in (prompt + response for prompt, response in zip(self.prompts, self.responses, strict=True))
        ]
        return sequence_log_probs(torch.stack(rows), self.head, self.rows)

    def gradients(self, found: SequenceLogProbs) -> dict[Any, Tensor]:
        total = found.total
        leaves: dict[Any, Tensor] = dict(self.head.named_parameters())
        leaves.update(self.states)
        made = torch.autograd.grad(
            (total * torch.tensor(COEFFICIENTS, dtype=total.dtype)).sum(), list(leaves.values()), allow_unused=True
        )
        return {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), made, strict=True)
        }


def oracle(problem: Problem) -> list[float]:
    """From the head's own logits, a response token at a time."""
    totals = []
    for prompt, response in zip(problem.prompts, problem.responses, strict=True):
        total = 0.0
        for place, token in enumerate(response):
            with torch.no_grad():
                logits = problem.head(problem.state(prompt + response[:place])).double().tolist()
            total += oracles.log_softmax(logits)[token]
        totals.append(total)
    return totals


@pytest.mark.parametrize("chunk", [1, 4, None])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", FORMATS)
def test_trees_equal_separate_rows_in_values_and_gradients(dtype: torch.dtype, bias: bool, chunk: int | None) -> None:
    """A coefficient for each sequence (B9): shared predictions get the sum of those of both."""
    by_value, by_gradient = FORMATS[dtype]
    problem = Problem(dtype, bias)
    packed, separate = problem.packed(chunk=chunk), problem.separate()
    assert packed.total.dtype == separate.total.dtype
    assert packed.total.tolist() == pytest.approx(oracle(problem), rel=by_value, abs=by_value)
    assert packed.total.tolist() == pytest.approx(separate.total.tolist(), rel=by_value, abs=by_value)
    assert packed.num_tokens.tolist() == separate.num_tokens.tolist() == [3, 1, 3, 5, 3, 3]
    found, wanted = problem.gradients(packed), problem.gradients(separate)
    assert any(gradient.any() for gradient in wanted.values())
    for name, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        assert torch.allclose(found[name], gradient, rtol=by_gradient, atol=by_gradient * scale), name


def test_never_more_predictions_have_logits_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, held, plain = Problem(torch.float32, bias=True), [], F.linear

    def watched(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        held.append(len(states))
        return plain(states, weight, bias)

    monkeypatch.setattr(F, "linear", watched)
    predictions = len(problem.batch.targets)
    problem.packed(chunk=4).total.sum().backward()  # type: ignore[no-untyped-call]
    assert max(held) == 4
    assert sum(held) == 2 * predictions  # forward, and once more for the backward pass
    held.clear()
    problem.packed()
    assert held == [predictions]


def test_a_shared_prediction_counts_for_both_sequences() -> None:
    problem = Problem(torch.float64, bias=False)
    batch, right = problem.batch, problem.packed()
    terms = batch.terms.tolist()
    once = [index for index, term in enumerate(terms) if term not in terms[:index]]
    assert len(once) < len(batch.terms)
    defective = problem.packed(replace(batch, terms=batch.terms[once], owners=batch.owners[once]))
    assert defective.total[:3].tolist() == pytest.approx(right.total[:3].tolist())
    assert defective.total[3:].tolist() != pytest.approx(right.total[3:].tolist(), rel=1e-2)


def test_B1_sums_not_means() -> None:
    problem = Problem(torch.float64, bias=False)
    found = problem.packed()
    assert found.total.tolist() == pytest.approx(oracle(problem))
    means = [total / tokens for total, tokens in zip(oracle(problem), found.num_tokens.tolist(), strict=True)]
    assert found.mean.tolist() == pytest.approx(means)


def test_B2_a_long_response_is_summed_in_float32_or_wider() -> None:
    """At 1,600 nats a bfloat16 has a spacing of 8; METHOD, consequence 7."""
    generator = torch.Generator().manual_seed(0)
    response = torch.randint(VOCABULARY, (400,), generator=generator).tolist()
    batch = pack([[1]], [[response]])
    hidden = (3 * torch.randn(400, WIDTH, generator=generator)).bfloat16()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).bfloat16()
    logits = (hidden @ weight.T).double().tolist()
    expected = sum(oracles.log_softmax(row)[y] for row, y in zip(logits, response, strict=True))
    found = packed_log_probs(hidden, weight, None, batch).total
    assert expected < -1000
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, abs=0.01)


def test_A5_states_that_predict_no_response_token_get_no_gradient() -> None:
    batch = pack([[3, 4, 5, 6]], [[[7, 8, 2], [9, 2]]])
    hidden = torch.randn(batch.num_tokens, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(1))
    packed_log_probs(hidden, weight, None, batch).total.sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    touched = hidden.grad.abs().sum(dim=-1) > 0
    assert touched.tolist() == [False, False, False, True, True, True, True]  # 3 4 5 [6] [7] [8] | [9]


@pytest.mark.parametrize("defect", ["predicted_by", "targets", "owners"])
def test_a_batch_with_one_field_out_of_place_is_noticed(defect: str) -> None:
    problem = Problem(torch.float64, bias=False)
    moved = replace(problem.batch, **{defect: getattr(problem.batch, defect).roll(1)})
    assert problem.packed(moved).total.tolist() != pytest.approx(oracle(problem), rel=1e-2)


def test_shapes_that_contradict_one_another_are_refused_where_types_are_checked() -> None:
    problem = Problem(torch.float32, bias=True)
    with pytest.raises(jaxtyping.TypeCheckError):
        packed_log_probs(torch.zeros(problem.batch.num_tokens, WIDTH + 1), problem.head.weight, None, problem.batch)
