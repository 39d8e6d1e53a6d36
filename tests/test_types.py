from __future__ import annotations

from dataclasses import replace

import jaxtyping
import pytest
import torch

from lightning_dadpo.data.packing import pack
from lightning_dadpo.types import (
    PackedBatch,
    PairBatch,
    PairLogProbs,
    ResponseBatch,
    SequenceBatch,
    SequenceLogProbs,
)

SUMS = SequenceLogProbs(torch.tensor([-4.0, -9.0, -1.0, -2.0]), torch.tensor([2, 3, 1, 4]))


def batch() -> SequenceBatch:
    # the padding id 2 also ends the turns, so only lengths can tell them apart (trap A11)
    return SequenceBatch(torch.tensor([[5, 6, 2, 2], [5, 2, 2, 2]]), torch.tensor([1, 1]), torch.tensor([3, 2]))


def trees() -> PackedBatch:
    """One pair: the prompt 5 6 with the responses 2 and 7 2."""
    return pack([[5, 6]], [[[2], [7, 2]]])


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
    pairs = PairBatch(("a",), trees(), torch.ones(1), pairs_in_step=8).to("meta")
    tensors = [value for value in vars(pairs.sequences).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 7
    assert {value.device.type for value in (*tensors, pairs.weights)} == {"meta"}
    assert pairs.sequences.shapes == ((2, 0, 1),)
    assert (pairs.pair_ids, pairs.pairs_in_step, len(pairs)) == (("a",), 8, 1)
    packed = pack([[5], [6]], [[[7]], [[8]]])
    responses = ResponseBatch(("a", "b"), packed, torch.ones(2), tokens_in_step=9, responses_in_step=2).to("meta")
    assert responses.sequences.targets.device.type == "meta"
    assert (responses.response_ids, responses.tokens_in_step) == (("a", "b"), 9)
    assert batch().to("meta").prompt_lengths.device.type == "meta"
    assert PairLogProbs.split(SUMS).to("meta").rejected.num_tokens.device.type == "meta"


def test_a_batch_of_trees_counts_what_the_trunk_computes() -> None:
    two = pack([[5, 6, 4, 3], [7]], [[[2], [7, 2]], [[8, 9, 2], [8, 2]]])
    assert two.shapes == ((4, 0, 1), (2, 1, 0))
    assert (two.num_tokens, two.num_slots) == (8, 10)
    assert two.num_tokens == len(two.token_ids)


def test_shapes_that_contradict_one_another_are_refused_where_types_are_checked() -> None:
    """The package's own annotations, through jaxtyping: pytest's options in pyproject.toml switch it on."""
    with pytest.raises(jaxtyping.TypeCheckError):
        SequenceLogProbs(torch.zeros(3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(jaxtyping.TypeCheckError):
        replace(trees(), position_ids=torch.zeros(1, dtype=torch.long))
    with pytest.raises(jaxtyping.TypeCheckError):
        replace(trees(), owners=trees().owners.float())
