from __future__ import annotations

import torch

from lightning_dadpo.types import PairBatch, PairLogProbs, ResponseBatch, SequenceBatch, SequenceLogProbs

SUMS = SequenceLogProbs(torch.tensor([-4.0, -9.0, -1.0, -2.0]), torch.tensor([2, 3, 1, 4]))


def batch() -> SequenceBatch:
    # the padding id 2 also ends the turns, so only lengths can tell them apart (trap A11)
    return SequenceBatch(torch.tensor([[5, 6, 2, 2], [5, 2, 2, 2]]), torch.tensor([1, 1]), torch.tensor([3, 2]))


def test_the_mean_is_nats_per_token() -> None:
    assert SUMS.mean.tolist() == [-2.0, -3.0, -1.0, -0.5]


def test_pairs_are_split_all_chosen_first() -> None:
    pairs = PairLogProbs.split(SUMS)
    assert pairs.chosen.total.tolist() == [-4.0, -9.0]
    assert pairs.rejected.total.tolist() == [-1.0, -2.0]
    assert pairs.rejected.num_tokens.tolist() == [1, 4]
    assert pairs.gap.tolist() == [-3.0, -7.0]


def test_rows_are_taken_together_with_their_counts() -> None:
    taken = SUMS[torch.tensor([3, 0])]
    assert taken.total.tolist() == [-2.0, -4.0]
    assert taken.num_tokens.tolist() == [4, 2]


def test_detach_leaves_the_numbers_and_cuts_the_gradient() -> None:
    total = SUMS.total.clone().requires_grad_()
    pairs = PairLogProbs.split(SequenceLogProbs(total, SUMS.num_tokens))
    assert pairs.gap.requires_grad
    assert not pairs.detach().gap.requires_grad
    assert torch.equal(pairs.detach().gap, pairs.gap.detach())


def test_A11_the_mask_comes_from_lengths() -> None:
    assert batch().attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch().num_response_tokens.tolist() == [2, 1]


def test_moving_a_batch_moves_every_tensor_and_keeps_the_rest() -> None:
    pairs = PairBatch(("a",), batch(), torch.ones(1), pairs_in_step=8).to("meta")
    assert pairs.sequences.input_ids.device.type == pairs.sequences.lengths.device.type == pairs.weights.device.type
    assert pairs.weights.device.type == "meta"
    assert (pairs.pair_ids, pairs.pairs_in_step, len(pairs)) == (("a",), 8, 1)
    responses = ResponseBatch(("a", "b"), batch(), torch.ones(2), tokens_in_step=9).to("meta")
    assert responses.sequences.prompt_lengths.device.type == "meta"
    assert (responses.response_ids, responses.tokens_in_step) == (("a", "b"), 9)
    assert PairLogProbs.split(SUMS).to("meta").rejected.num_tokens.device.type == "meta"
