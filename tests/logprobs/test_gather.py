"""The readable log-prob kernel against the float64 oracle, and the traps that such kernels fall into."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dadpo.logprobs import response_positions, sequence_log_probs, token_log_probs
from lightning_dadpo.types import SequenceBatch, SequenceLogProbs
from tests import oracles

WIDTH, VOCABULARY = 5, 11
END_OF_TURN = 2  # also the padding id, as in SmolLM2-Instruct (trap A11)
Kernel = Callable[[Tensor, nn.Linear, SequenceBatch], SequenceLogProbs]

# (prompt tokens, response tokens) of each row
SHAPES = {
    "one token each": [(1, 1)],
    "response of one token": [(4, 1)],
    "prompt of one token": [(1, 6)],
    "ragged": [(3, 2), (1, 7), (5, 1), (2, 2)],
    "seven rows of one shape": [(2, 3)] * 7,
    "an empty response beside another": [(3, 0), (2, 2)],
    "no rows": [],
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}


def batch_of(shape: Sequence[tuple[int, int]], seed: int = 0) -> SequenceBatch:
    """Random ids; every response ends its turn, padding is the end-of-turn id."""
    generator = torch.Generator().manual_seed(seed)
    longest = max((prompt + response for prompt, response in shape), default=1)
    ids = torch.full((len(shape), longest), END_OF_TURN)
    for row, (prompt, response) in enumerate(shape):
        ids[row, : prompt + response] = torch.randint(3, VOCABULARY, (prompt + response,), generator=generator)
        if response:
            ids[row, prompt + response - 1] = END_OF_TURN
    prompts = torch.tensor([prompt for prompt, _ in shape], dtype=torch.long)
    return SequenceBatch(ids, prompts, prompts + torch.tensor([response for _, response in shape], dtype=torch.long))


def problem(
    shape: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, nn.Linear, SequenceBatch]:
    """Hidden states, a head without bias and a batch."""
    batch = batch_of(shape, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    hidden = torch.randn(*batch.input_ids.shape, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64))
    return hidden.requires_grad_(), head, batch


def oracle_rows(hidden: Tensor, head: nn.Linear, batch: SequenceBatch) -> list[tuple[float, int]]:
    """From the logits as the head's own dtype gives them: the matrix product is not what is proved here."""
    with torch.no_grad():
        logits = head(hidden).double().tolist()
    lengths = zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    return [
        oracles.sequence_log_prob(logits[row], batch.input_ids[row].tolist(), prompt, length)
        for row, (prompt, length) in enumerate(lengths)
    ]


def oracle_gradients(
    hidden: Tensor, head: nn.Linear, batch: SequenceBatch, coefficients: Sequence[float]
) -> tuple[Tensor, Tensor]:
    by_hidden, by_weight = [], torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
    for row, coefficient in enumerate(coefficients):
        states, weight = oracles.sequence_hidden_gradient(
            hidden[row].double().tolist(),
            head.weight.double().tolist(),
            batch.input_ids[row].tolist(),
            int(batch.prompt_lengths[row]),
            int(batch.lengths[row]),
            coefficient,
        )
        by_hidden.append(states)
        by_weight += torch.tensor(weight, dtype=torch.float64)
    return torch.tensor(by_hidden, dtype=torch.float64).reshape(hidden.shape), by_weight


def values_agree(kernel: Kernel, shape: Sequence[tuple[int, int]], dtype: torch.dtype, tolerance: float) -> bool:
    """The check that every kernel has to pass."""
    hidden, head, batch = problem(shape, dtype)
    expected, found = oracle_rows(hidden, head, batch), kernel(hidden, head, batch)
    totals = pytest.approx([total for total, _ in expected], rel=tolerance, abs=tolerance)
    return bool(found.total.tolist() == totals) and found.num_tokens.tolist() == [count for _, count in expected]


def gradients_agree(
    kernel: Kernel, dtype: torch.dtype, tolerance: float, coefficients: Sequence[float] = (0.7, -1.3, 2.9, 0.0)
) -> bool:
    """Trap B9: each sequence has its own coefficient, one of them zero."""
    hidden, head, batch = problem(SHAPES["ragged"], dtype)
    total = kernel(hidden, head, batch).total
    (total * torch.tensor(coefficients, dtype=total.dtype)).sum().backward()  # type: ignore[no-untyped-call]
    expected_hidden, expected_weight = oracle_gradients(hidden.detach(), head, batch, coefficients)
    assert hidden.grad is not None
    assert head.weight.grad is not None
    return all(
        torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
        for found, expected in ((hidden.grad, expected_hidden), (head.weight.grad, expected_weight))
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_equal_the_float64_oracle(dtype: torch.dtype, shape: str) -> None:
    assert values_agree(sequence_log_probs, SHAPES[shape], dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sums_are_float32_or_wider(dtype: torch.dtype) -> None:
    found = sequence_log_probs(*problem(SHAPES["ragged"], dtype))
    assert found.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found.num_tokens.dtype.is_floating_point


# bfloat16: the gradients pass through a bfloat16 matrix product, 8 bits of mantissa
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_B9_gradients_equal_the_oracles_with_a_coefficient_for_each_sequence(
    dtype: torch.dtype, tolerance: float
) -> None:
    assert gradients_agree(sequence_log_probs, dtype, tolerance)


def test_B9_a_backward_that_ignores_its_coefficients_is_noticed() -> None:
    class IgnoresGradOutput(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, total: Tensor) -> Tensor:
            return total.clone()

        @staticmethod
        def backward(ctx: object, grad_output: Tensor) -> Tensor:  # type: ignore[override]
            return torch.ones_like(grad_output)

    def defective(hidden: Tensor, head: nn.Linear, batch: SequenceBatch) -> SequenceLogProbs:
        right = sequence_log_probs(hidden, head, batch)
        total = IgnoresGradOutput.apply(right.total)  # type: ignore[no-untyped-call]
        return SequenceLogProbs(total, right.num_tokens)

    assert gradients_agree(defective, torch.float64, 1e-12, [1.0] * 4)  # why grad_output = 1 proves nothing
    assert not gradients_agree(defective, torch.float64, 1e-2)


def shifted(first: int, last: int, predicted_at: int) -> Kernel:
    """The plain kernel with its window moved: tokens [prompt + first, length + last), predicted at t - predicted_at."""

    def kernel(hidden: Tensor, head: nn.Linear, batch: SequenceBatch) -> SequenceLogProbs:
        totals, counts = [], []
        for row, (prompt, length) in enumerate(zip(batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)):
            tokens = torch.arange(max(prompt + first, predicted_at), min(length + last, batch.input_ids.shape[1]))
            log_probs = F.log_softmax(head(hidden[row, tokens - predicted_at]), dim=-1)
            totals.append(log_probs.gather(1, batch.input_ids[row, tokens, None]).sum())
            counts.append(len(tokens))
        return SequenceLogProbs(torch.stack(totals), torch.tensor(counts))

    return kernel


def test_A5_prompt_tokens_counted_or_the_first_response_token_lost_is_noticed() -> None:
    ragged = SHAPES["ragged"]
    assert values_agree(shifted(first=0, last=0, predicted_at=1), ragged, torch.float64, 1e-9)  # the right window
    assert not values_agree(shifted(first=-1, last=0, predicted_at=1), ragged, torch.float64, 1e-2)  # a prompt token
    assert not values_agree(shifted(first=1, last=0, predicted_at=1), ragged, torch.float64, 1e-2)  # first one lost
    assert not values_agree(shifted(first=0, last=0, predicted_at=0), ragged, torch.float64, 1e-2)  # no shift
    # the shift that keeps the count right: one token early at both ends
    assert not values_agree(shifted(first=-1, last=-1, predicted_at=1), [(3, 2)], torch.float64, 1e-2)


def test_A5_the_prompt_decides_nothing_but_the_last_position_of_it() -> None:
    hidden, head, batch = problem([(4, 3)])
    sequence_log_probs(hidden, head, batch).total.sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    touched = hidden.grad[0].abs().sum(dim=-1) > 0
    # ids 4, 5, 6 are predicted at 3, 4, 5; nothing is predicted at the last position
    assert touched.tolist() == [False, False, False, True, True, True, False]


def test_response_positions_by_hand() -> None:
    batch = SequenceBatch(torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 2, 2]]), torch.tensor([3, 1]), torch.tensor([5, 3]))
    rows, positions, targets = response_positions(batch)
    assert rows.tolist() == [0, 0, 1, 1]
    assert positions.tolist() == [2, 3, 0, 1]
    assert targets.tolist() == [8, 2, 10, 2]


def test_A7_a_response_cut_by_the_length_cap_is_scored_as_a_prefix() -> None:
    hidden, head, whole = problem([(2, 4)])
    cut = SequenceBatch(whole.input_ids, whole.prompt_lengths, whole.lengths - 1)
    found = sequence_log_probs(hidden, head, cut)
    total, count = oracle_rows(hidden, head, cut)[0]
    assert count == 3
    assert found.num_tokens.tolist() == [3]
    assert found.total.tolist() == pytest.approx([total])
    # the defect: padding is the end-of-turn id, so counting one more gives the cut response an end of turn
    gained = sequence_log_probs(hidden, head, whole)
    assert gained.num_tokens.tolist() == [4]
    assert gained.total.tolist() != pytest.approx([total], rel=1e-2)


def test_A11_a_mask_from_ids_strips_the_real_end_of_turn_and_is_noticed() -> None:
    def defective(hidden: Tensor, head: nn.Linear, batch: SequenceBatch) -> SequenceLogProbs:
        real = (batch.input_ids != END_OF_TURN).sum(dim=1)
        return sequence_log_probs(hidden, head, SequenceBatch(batch.input_ids, batch.prompt_lengths, real))

    assert values_agree(sequence_log_probs, SHAPES["ragged"], torch.float64, 1e-9)
    assert not values_agree(defective, SHAPES["ragged"], torch.float64, 1e-2)


def test_A11_an_end_of_turn_inside_prompt_and_response_is_a_token_like_any_other() -> None:
    hidden, head, batch = problem([(4, 4), (2, 3)])
    batch.input_ids[0, [1, 3, 5]] = END_OF_TURN
    found, expected = sequence_log_probs(hidden, head, batch), oracle_rows(hidden, head, batch)
    assert found.total.tolist() == pytest.approx([total for total, _ in expected])
    assert found.num_tokens.tolist() == [4, 3]


def test_B1_a_mean_in_place_of_the_sum_is_noticed() -> None:
    def defective(hidden: Tensor, head: nn.Linear, batch: SequenceBatch) -> SequenceLogProbs:
        right = sequence_log_probs(hidden, head, batch)
        return SequenceLogProbs(right.mean, right.num_tokens)

    assert values_agree(defective, [(3, 1), (1, 1)], torch.float64, 1e-9)  # why one-token responses prove nothing
    assert not values_agree(defective, SHAPES["ragged"], torch.float64, 1e-2)


def log_softmax_in_its_own_dtype(hidden: Tensor, head: nn.Linear, batch: SequenceBatch) -> SequenceLogProbs:
    rows, positions, targets = response_positions(batch)
    log_probs = F.log_softmax(head(hidden[rows, positions]), dim=-1).gather(1, targets[:, None]).squeeze(1)
    totals = torch.zeros(len(batch.lengths), dtype=log_probs.dtype).index_add(0, rows, log_probs)
    return SequenceLogProbs(totals.float(), batch.num_response_tokens)


def test_B2_a_log_softmax_in_bfloat16_is_noticed() -> None:
    ragged = SHAPES["ragged"]
    assert values_agree(log_softmax_in_its_own_dtype, ragged, torch.float32, 1e-5)  # in float32 it is no defect
    assert not values_agree(log_softmax_in_its_own_dtype, ragged, torch.bfloat16, 1e-3)


def test_B2_a_long_response_is_summed_in_float32_or_wider() -> None:
    """At 1,600 nats a bfloat16 has a spacing of 8; METHOD, consequence 7."""
    hidden, head, batch = problem([(1, 400)], torch.bfloat16)
    expected = oracle_rows(hidden, head, batch)[0][0]
    assert expected < -1000
    assert sequence_log_probs(hidden, head, batch).total.item() == pytest.approx(expected, abs=0.01)
    assert abs(log_softmax_in_its_own_dtype(hidden, head, batch).total.item() - expected) > 1


def test_B2_the_heads_matrix_product_keeps_its_dtype() -> None:
    seen = []
    hidden, head, batch = problem(SHAPES["ragged"], torch.bfloat16)

    def watching(states: Tensor) -> Tensor:
        seen.append((states.dtype, states.shape[0]))
        logits: Tensor = head(states)
        return logits

    sequence_log_probs(hidden, watching, batch)
    assert {dtype for dtype, _ in seen} == {torch.bfloat16}
    assert sum(tokens for _, tokens in seen) == int(batch.num_response_tokens.sum())  # on response positions only


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_token_log_probs_equal_the_oracle_at_large_logits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = (200 * torch.randn(9, VOCABULARY, generator=generator, dtype=torch.float64)).to(dtype)
    targets = torch.arange(9)
    expected = [oracles.log_softmax(row)[i] for i, row in enumerate(logits.double().tolist())]
    assert token_log_probs(logits, targets).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    hidden, head, batch = problem(SHAPES["ragged"])
    expected = sequence_log_probs(hidden, head, batch)
    padding = batch.attention_mask == 0
    ids = torch.where(padding, 7, batch.input_ids)
    states = torch.where(padding[..., None], torch.nan, hidden)
    found = sequence_log_probs(states, head, SequenceBatch(ids, batch.prompt_lengths, batch.lengths))
    assert torch.equal(found.total, expected.total)


def test_B7_a_tied_head_sums_the_gradients_of_head_and_embedding() -> None:
    """A trunk that is a running mean of embeddings, its head the same table: against differences of the oracle."""
    batch = batch_of(SHAPES["ragged"])
    coefficients = [0.7, -1.3, 2.9, 0.4]
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    counts = torch.arange(1, batch.input_ids.shape[1] + 1, dtype=torch.float64)[:, None]
    hidden = table[batch.input_ids].cumsum(dim=1) / counts
    total = sequence_log_probs(hidden, lambda states: states @ table.T, batch).total
    (total * torch.tensor(coefficients)).sum().backward()  # type: ignore[no-untyped-call]

    def value(weight: list[list[float]]) -> float:
        result = 0.0
        for row, coefficient in enumerate(coefficients):
            ids, length = batch.input_ids[row].tolist(), int(batch.lengths[row])
            states = [[sum(weight[i][d] for i in ids[: t + 1]) / (t + 1) for d in range(WIDTH)] for t in range(length)]
            logits = [oracles.head_logits(state, weight) for state in states]
            result += coefficient * oracles.sequence_log_prob(logits, ids, int(batch.prompt_lengths[row]), length)[0]
        return result

    assert table.grad is not None
    plain = table.detach().tolist()
    for v in range(VOCABULARY):
        for d in range(WIDTH):
            up, down = [list(row) for row in plain], [list(row) for row in plain]
            up[v][d] += 1e-5
            down[v][d] -= 1e-5
            assert table.grad[v, d].item() == pytest.approx((value(up) - value(down)) / 2e-5, abs=1e-7)
