from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_dadpo.data.beginnings import families, shared_prefix

ODD = [100, 101, 7, 8]
SYSTEM = list(range(100, 120))
ALIKE = [[*SYSTEM, 10 + number, *range(40, 40 + number)] for number in range(6)]


def test_what_sequences_begin_with_in_common() -> None:
    assert shared_prefix([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert shared_prefix([[1, 2], [1, 2, 3]]) == 2
    assert shared_prefix([[1, 2, 3]]) == 3
    assert shared_prefix([[], [1]]) == 0
    assert shared_prefix([[1, 2, 3], [9, 2, 3]]) == 0  # equal further on does not count


def found(prompt_ids: list[list[int]]) -> list[tuple[list[int], int]]:
    return [(family.prompts, family.shared) for family in families(prompt_ids)]


def test_one_prompt_of_another_kind_does_not_spoil_what_the_others_share() -> None:
    assert found([ODD, *ALIKE]) == [([1, 2, 3, 4, 5, 6], 20), ([0], 0)]


def test_prompts_that_share_little_are_one_family_all_the_same() -> None:
    assert found([[1, 9, 9], [1, 5], [1, 7, 7, 7]]) == [([1, 0, 2], 1)]
    assert found([[1, 2], [3], [4, 5, 6]]) == [([1, 0, 2], 0)]


def test_the_last_token_of_a_prompt_is_never_shared_since_the_first_answer_token_is_predicted_there() -> None:
    assert found([[5, 6, 7], [5, 6, 7]]) == [([0, 1], 2)]
    assert found([[5, 6], [5, 6, 7, 8]]) == [([0, 1], 1)]
    assert found([[5]]) == [([0], 0)]


def test_two_kinds_are_two_families_and_the_one_that_saves_more_comes_first() -> None:
    few, many = [[1, 2, 3, number] for number in (10, 11)], [[4, 5, 6, number] for number in (10, 11, 12)]
    assert found([*few, *many]) == [([2, 3, 4], 3), ([0, 1], 3)]


def most_saved(prompt_ids: list[list[int]], left: list[int]) -> int:
    """Tokens that one shared beginning can save at most: every beginning of every prompt is tried."""
    beginnings = [prompt_ids[prompt][:length] for prompt in left for length in range(1, len(prompt_ids[prompt]))]
    together = [sum(prompt_ids[prompt][:-1][: len(one)] == one for prompt in left) for one in beginnings]
    return max((len(one) * (count - 1) for one, count in zip(beginnings, together, strict=True)), default=0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=7))
@example([[1], [1], [1, 1], [1, 1]])
def test_every_prompt_is_in_one_family_and_each_saves_the_most_of_what_is_left(prompt_ids: list[list[int]]) -> None:
    left = list(range(len(prompt_ids)))
    for family in families(prompt_ids):
        assert len(set(family.prompts)) == len(family.prompts)
        assert set(family.prompts) <= set(left)
        assert all(family.shared < len(prompt_ids[prompt]) for prompt in family.prompts)
        assert len({tuple(prompt_ids[prompt][: family.shared]) for prompt in family.prompts}) == 1
        assert family.shared * (len(family.prompts) - 1) == most_saved(prompt_ids, left)
        left = [prompt for prompt in left if prompt not in family.prompts]
    assert not left
