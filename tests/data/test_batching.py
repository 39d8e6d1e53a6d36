"""From rows of ids to batches, and the traps that padding and packing set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_dadpo.data.batching import (
    PADDING,
    collate_pairs,
    collate_responses,
    collate_sequences,
    pair_tokens,
    response_tokens,
)
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs
from tests.scoring.example import make_pair, make_response
from tests.tiny import END_OF_TURN
from tests.trees import sequences_of


def test_B4_rows_are_padded_on_the_right_and_ids_are_concatenated() -> None:
    batch = collate_sequences([[5, 6], [7]], [[8], [9, 10, 2]])
    assert batch.input_ids.tolist() == [[5, 6, 8, PADDING], [7, 9, 10, 2]]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.lengths.tolist() == [3, 4]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.num_response_tokens.tolist() == [1, 3]


def test_A11_real_tokens_that_equal_the_padding_or_the_end_of_turn_stay_in_the_mask() -> None:
    batch = collate_sequences([[PADDING, END_OF_TURN], [4]], [[PADDING, END_OF_TURN], [5]])
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.num_response_tokens.tolist() == [2, 1]


def test_A3_a_response_is_taken_as_it_was_sampled_nothing_is_appended() -> None:
    cut = replace(make_pair(0), chosen_token_ids=[9, 9], chosen_finish_reason="length")
    batch = collate_pairs([cut]).sequences
    assert sequences_of(batch)[0] == [*cut.prompt_token_ids, 9, 9]
    assert batch.num_response_tokens[0] == 2
    assert batch.targets[batch.terms[batch.owners == 0]].tolist() == [9, 9]


def test_pairs_are_all_chosen_rows_then_all_rejected_rows() -> None:
    pairs = [make_pair(0), make_pair(1), make_pair(2)]
    batch = collate_pairs(pairs, [1.0, 0.0, 1.0], pairs_in_step=7)
    texts = [p.prompt_token_ids + p.chosen_token_ids for p in pairs]
    texts += [p.prompt_token_ids + p.rejected_token_ids for p in pairs]
    assert sequences_of(batch.sequences) == texts
    assert batch.pair_ids == tuple(pair.pair_id for pair in pairs)
    assert batch.weights.tolist() == [1.0, 0.0, 1.0]
    assert batch.pairs_in_step == 7
    counted = [0, 2, 3, 5]  # the second pair is a filler
    assert batch.real_tokens == sum(len(texts[index]) for index in counted)
    tokens = batch.sequences.num_response_tokens
    split = PairLogProbs.split(SequenceLogProbs(tokens.float(), tokens))
    assert split.chosen.num_tokens.tolist() == [len(pair.chosen_token_ids) for pair in pairs]
    assert split.rejected.num_tokens.tolist() == [len(pair.rejected_token_ids) for pair in pairs]


def test_by_default_every_pair_counts_and_the_batch_is_the_step() -> None:
    batch = collate_pairs([make_pair(0), make_pair(1)])
    assert batch.weights.tolist() == [1.0, 1.0]
    assert batch.pairs_in_step == 2


def test_responses_carry_the_tokens_of_their_step() -> None:
    rows = [make_response(0), make_response(1)]
    tokens = sum(len(row.token_ids) for row in rows)
    batch = collate_responses(rows)
    assert batch.tokens_in_step == tokens
    assert batch.sequences.num_response_tokens.tolist() == [len(row.token_ids) for row in rows]
    assert sequences_of(batch.sequences) == [row.prompt_token_ids + row.token_ids for row in rows]
    assert batch.real_tokens == tokens + sum(len(row.prompt_token_ids) for row in rows)
    assert collate_responses(rows, tokens_in_step=99).tokens_in_step == 99
    assert batch.responses_in_step == len(rows)
    assert collate_responses(rows, responses_in_step=7).responses_in_step == 7
    assert batch.ids == tuple((row.prompt_token_ids, row.token_ids) for row in rows)
    assert len(set(batch.response_ids)) == 2


def test_a_filler_counts_no_real_tokens() -> None:
    rows = [make_response(0), make_response(1)]
    alone = len(rows[0].prompt_token_ids) + len(rows[0].token_ids)
    batch = collate_responses(rows, [1.0, 0.0])
    assert (batch.tokens_in_step, batch.real_tokens) == (len(rows[0].token_ids), alone)
    assert batch.sequences.num_response_tokens.tolist() == [len(row.token_ids) for row in rows]
    assert collate_pairs([make_pair(0)], [0.0]).real_tokens == 0


def test_tokens_count_the_prompt_once_and_no_last_token_of_a_response() -> None:
    pair = replace(make_pair(0), prompt_token_ids=[1] * 4, chosen_token_ids=[5, 6, 2], rejected_token_ids=[7, 8, 9, 2])
    assert pair_tokens(pair) == 4 + 2 + 3
    shared = replace(pair, rejected_token_ids=[5, 8, 9, 2])
    assert pair_tokens(shared) == 4 + 1 + 1 + 2
    row = make_response(0)
    assert response_tokens(row) == len(row.prompt_token_ids) + len(row.token_ids) - 1
    for one in (pair, shared, *(make_pair(number) for number in range(5))):
        assert pair_tokens(one) == collate_pairs([one]).sequences.num_tokens
    assert response_tokens(row) == collate_responses([row]).sequences.num_tokens


def test_collating_unequal_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        collate_sequences([[1], [2]], [[3]])
