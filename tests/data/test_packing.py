"""Token trees against their definition, spelled out token by token: nothing lost, nothing twice, nothing out of place.

What a batch says is read back from its tensors alone and compared with the ids that went in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_dadpo.data.packing import pack, tree_tokens
from lightning_dadpo.types import PackedBatch
from tests.tiny import END_OF_TURN
from tests.trees import history, places_of, sequences_of

Prompts = list[list[int]]
Responses = list[list[list[int]]]
FEW_IDS = st.integers(1, 3)  # so few that responses often begin alike; one of them ends turns


@st.composite
def problems(draw: st.DrawFn) -> tuple[Prompts, Responses]:
    """Prompts with one to three responses each; prompts, and responses of one, often begin with the same tokens."""
    count = draw(st.integers(1, 3))
    systems = [draw(st.lists(FEW_IDS, max_size=4)) for _ in range(2)]
    prompts, responses = [], []
    for _ in range(draw(st.integers(1, 5))):
        prompts.append(draw(st.sampled_from(systems)) + draw(st.lists(FEW_IDS, min_size=1, max_size=4)))
        common = draw(st.lists(FEW_IDS, max_size=3))
        tails = [draw(st.lists(FEW_IDS, min_size=0 if common else 1, max_size=4)) for _ in range(count)]
        responses.append([common + tail for tail in tails])
    return prompts, responses


EDGES: dict[str, tuple[Prompts, Responses]] = {
    "nothing shared": ([[4, 5]], [[[6, 2], [7, 8, 2]]]),
    "a shared beginning": ([[4, 5]], [[[6, 7, 8, 2], [6, 7, 9, 9, 2]]]),
    "equal but for the last token": ([[4, 5]], [[[6, 7, 8], [6, 7, 9]]]),
    "one is a proper prefix of the other": ([[4]], [[[6, 7], [6, 7, 8, 2]]]),
    "the longer one first": ([[4]], [[[6, 7, 8, 2], [6, 7]]]),
    "equal": ([[4, 5]], [[[6, 7, 2], [6, 7, 2]]]),
    "one token each": ([[4, 5]], [[[6], [7]]]),
    "one token each, the same": ([[4, 5]], [[[6], [6]]]),
    "one token beside many": ([[4]], [[[6], [6, 7, 8]]]),
    "a prompt of one token": ([[4]], [[[6, 7], [8, 9]]]),
    "one response": ([[4, 5], [6]], [[[7, 8, 2]], [[9]]]),
    "three responses, two of them alike": ([[4]], [[[6, 7, 2], [6, 7, 8, 2], [9, 2]]]),
    "trees of different sizes": ([[4], [5, 6, 7]], [[[8], [9]], [[1, 1, 1, 2], [1, 1, 3, 3, 3, 2]]]),
    "the response repeats the prompt": ([[4, 5]], [[[4, 5, 2], [4, 5, 4, 5, 2]]]),
    "one system prompt": ([[1, 1, 4], [1, 1, 5, 6], [1, 1, 7]], [[[8, 2], [9]], [[8], [8, 2]], [[2], [2]]]),
    "two system prompts by turns": (
        [[1, 1, 4], [3, 3, 3, 5], [1, 1, 6], [3, 3, 3, 7]],
        [[[8, 2]], [[9]], [[2]], [[9]]],
    ),
    "one of another kind first": ([[9], [1, 1, 4], [1, 1, 5]], [[[8], [9]], [[8], [9]], [[8], [9]]]),
    "the same prompt in several trees": ([[4, 5, 6]] * 3, [[[7, 2], [8]], [[7, 2], [9]], [[7], [7]]]),
    "a prompt that begins another": ([[4, 5], [4, 5, 6, 7]], [[[6, 7, 2]], [[8, 2]]]),
    "prompts of one token, the same": ([[4], [4]], [[[6, 7]], [[6, 8]]]),
}


def common_beginning(sequences: Sequence[Sequence[int]]) -> int:
    length = 0
    while all(len(one) > length for one in sequences) and len({one[length] for one in sequences}) == 1:
        length += 1
    return length


def check(prompts: Prompts, responses: Responses) -> PackedBatch:
    """The whole definition."""
    batch = pack(prompts, responses)
    trees = list(zip(prompts, responses, strict=True))
    expected = [(prompt, group[number]) for number in range(len(responses[0])) for prompt, group in trees]
    # every sequence can be read back, all first responses before all second ones
    assert sequences_of(batch) == [prompt + response for prompt, response in expected]
    assert batch.num_response_tokens.tolist() == [len(response) for _, response in expected]
    # sizes: what is packed is what was announced, and no more than the shared beginning leaves over
    assert len(batch.token_ids) == len(batch.position_ids) == batch.num_tokens
    alone, packed = sum(tree_tokens(*tree) for tree in trees), []
    by, places = batch.predicted_by[batch.terms], places_of(batch)
    for stem, start, shape in places:
        index = int(batch.owners[(by >= start) & (by < start + sum(shape))].min())
        packed.append(index)
        prompt, group = trees[index]
        inputs = [response[:-1] for response in group]
        shared = common_beginning(inputs)
        assert shape == (len(prompt) - len(stem) + shared, *(len(one) - shared for one in inputs))
        assert shape[0] >= 1 + shared  # a prompt's last token stands in its own tree
        assert batch.token_ids[stem].tolist() == prompt[: len(stem)]
    assert sorted(packed) == list(range(len(trees)))
    assert batch.num_tokens == alone - sum(size * (behind - 1) for size, behind in batch.stems)
    assert all(behind > 1 or not size for size, behind in batch.stems)  # a stem of its own would only cost
    # each token at its place in its own sequence
    for index, position in enumerate(batch.position_ids.tolist()):
        assert position == len(history(batch, index)) - 1
    # each response token is predicted once for each sequence, by the token that stands before it
    for sequence, (prompt, response) in enumerate(expected):
        terms = batch.terms[batch.owners == sequence]
        made = [(history(batch, int(batch.predicted_by[term])), int(batch.targets[term])) for term in terms]
        assert made == [(prompt + response[:place], token) for place, token in enumerate(response)]
    # no prediction is made twice, none for nobody, and one is shared exactly when history and target are
    used = Counter(batch.terms.tolist())
    assert sorted(used) == list(range(len(batch.targets)))
    made = list(zip(batch.predicted_by.tolist(), batch.targets.tolist(), strict=True))
    assert len(set(made)) == len(made)
    assert all(tensor.dtype == torch.int64 for tensor in (batch.token_ids, batch.predicted_by, batch.terms))
    return batch


@pytest.mark.parametrize("edge", EDGES)
def test_the_definition_holds_at_the_edges(edge: str) -> None:
    check(*EDGES[edge])


@settings(max_examples=150, deadline=None)
@given(problems())
@example(([[1]], [[[1], [1]]]))
def test_the_definition_holds_everywhere(problem: tuple[Prompts, Responses]) -> None:
    check(*problem)


def test_a_pair_by_hand() -> None:
    batch = pack([[4, 5]], [[[6, 7, 8, 2], [6, 7, 9, 2]]])
    # prefix 4 5 6 7, then 8 | 9; both last tokens are no inputs
    assert batch.token_ids.tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 4]
    assert batch.shapes == ((4, 1, 1),)
    assert batch.predicted_by.tolist() == [1, 2, 3, 4, 3, 5]
    assert batch.targets.tolist() == [6, 7, 8, 2, 9, 2]
    assert batch.terms.tolist() == [0, 1, 2, 3, 0, 1, 4, 5]
    assert batch.owners.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_two_pairs_by_hand_stand_behind_one_another() -> None:
    batch = pack([[4, 5], [6]], [[[7, 2], [8]], [[9], [3, 2]]])
    assert batch.token_ids.tolist() == [4, 5, 7, 6, 3]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.shapes == ((2, 1, 0), (1, 0, 1))
    assert batch.predicted_by.tolist() == [1, 2, 1, 3, 3, 4]
    assert batch.targets.tolist() == [7, 2, 8, 9, 3, 2]
    # sequences: first responses of both prompts, then second ones
    assert batch.owners.tolist() == [0, 0, 2, 1, 3, 3]
    assert batch.num_response_tokens.tolist() == [2, 1, 1, 2]


def test_three_pairs_of_two_kinds_by_hand() -> None:
    batch = pack([[1, 1, 4], [9, 5], [1, 1, 6]], [[[7, 2], [8]], [[3], [2]], [[7], [7, 8, 2]]])
    # stem 1 1 with the first and the third prompt, then nothing shared with the second
    assert batch.token_ids.tolist() == [1, 1, 4, 7, 6, 7, 8, 9, 5]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 1]
    assert batch.stems == ((2, 2), (0, 1))
    assert batch.shapes == ((1, 1, 0), (1, 0, 2), (2, 0, 0))
    assert batch.predicted_by.tolist() == [2, 3, 2, 4, 5, 6, 8, 8]
    assert batch.targets.tolist() == [7, 2, 8, 7, 8, 2, 3, 2]
    assert batch.terms.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert batch.owners.tolist() == [0, 0, 3, 2, 5, 5, 5, 1, 4]
    assert batch.num_response_tokens.tolist() == [2, 1, 1, 1, 1, 3]
    assert (batch.num_tokens, batch.num_slots) == (9, 2 + 3 * 3)


@pytest.mark.parametrize("edge", EDGES)
def test_A5_the_first_response_token_is_predicted_by_the_prompts_last(edge: str) -> None:
    prompts, responses = EDGES[edge]
    batch = pack(prompts, responses)
    for sequence in range(len(batch.num_response_tokens)):
        tree, number = sequence % len(prompts), sequence // len(prompts)
        first = batch.terms[batch.owners == sequence][0]
        assert history(batch, int(batch.predicted_by[first])) == prompts[tree]
        assert batch.targets[first] == responses[tree][number][0]
    # nothing before the prompt's last token predicts anything
    positions = batch.position_ids[batch.predicted_by]
    assert int(positions.min()) >= min(map(len, prompts)) - 1


def test_A5_a_window_moved_by_one_fails_the_definition() -> None:
    """The checks above are not satisfied by just any batch."""
    right = pack([[4, 5, 6]], [[[7, 8, 2], [9, 2]]])
    first_lost = replace(right, terms=right.terms[1:], owners=right.owners[1:])
    early = replace(right, predicted_by=right.predicted_by - 1)
    for batch in (first_lost, early):
        terms = batch.terms[batch.owners == 0]
        made = [(history(batch, int(batch.predicted_by[term])), int(batch.targets[term])) for term in terms]
        assert made != [([4, 5, 6], 7), ([4, 5, 6, 7], 8), ([4, 5, 6, 7, 8], 2)]


def test_A11_an_end_of_turn_inside_is_a_token_like_any_other() -> None:
    plain = check([[4, 7, 5]], [[[7, 6, 7, 7], [7, 6, 8, 7]]])
    ended = check(
        [[4, END_OF_TURN, 5]], [[[END_OF_TURN, 6, END_OF_TURN, END_OF_TURN], [END_OF_TURN, 6, 8, END_OF_TURN]]]
    )
    assert ended.shapes == plain.shapes
    assert torch.equal(ended.token_ids == END_OF_TURN, plain.token_ids == 7)
    for name in ("position_ids", "predicted_by", "terms", "owners", "num_response_tokens"):
        assert torch.equal(getattr(ended, name), getattr(plain, name))
    padding = check([[0, 0]], [[[0, 0], [0, 3]]])  # the id that pads elsewhere
    assert padding.token_ids.tolist() == [0, 0, 0]


def test_A7_a_response_that_was_cut_gains_nothing() -> None:
    whole, cut = pack([[4]], [[[6, 7, END_OF_TURN]]]), pack([[4]], [[[6, 7]]])
    assert whole.targets.tolist() == [6, 7, END_OF_TURN]
    assert cut.targets.tolist() == [6, 7]
    assert cut.num_response_tokens.tolist() == [2]


@pytest.mark.parametrize("edge", EDGES)
def test_a_tree_costs_no_more_than_its_sequences_alone_and_shares_all_it_can(edge: str) -> None:
    prompts, responses = EDGES[edge]
    for prompt, group in zip(prompts, responses, strict=True):
        alone = sum(tree_tokens(prompt, [response]) for response in group)
        assert all(tree_tokens(prompt, [one]) == len(prompt) + len(one) - 1 for one in group)
        inputs = [prompt + response[:-1] for response in group]
        assert alone - tree_tokens(prompt, group) == (len(group) - 1) * common_beginning(inputs)


@pytest.mark.parametrize(
    ("prompts", "responses", "said"),
    [
        ([[]], [[[5], [6]]], "at least one token"),
        ([[4]], [[[5], []]], "at least one token"),
        ([[4], [5]], [[[5], [6]], [[7]]], "same number of responses"),
        ([], [], "same number of responses"),
        ([[4], [5]], [[[6]]], "argument 2 is longer|argument 2 is shorter"),
    ],
)
def test_what_is_no_tree_is_refused(prompts: Prompts, responses: Responses, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pack(prompts, responses)
