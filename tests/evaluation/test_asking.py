from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.asking import InBothOrders, Judged, ask, judged_rows
from lightning_dadpo.evaluation.judges import Comparison, Preference
from tests.evaluation.fake_judges import FakeJudge, FirstJudge, LongerJudge, RandomJudge


@dataclass(frozen=True)
class Row:
    name: str
    as_is: str
    swapped: str


def comparisons(number: int) -> list[Comparison]:
    return [
        Comparison(f"p{at}", [Message("user", f"question {at}")], "x" * (1 + at % 3), "y" * (1 + at % 2))
        for at in range(number)
    ]


def judged(folder: Path, judge: FakeJudge, number: int = 7, window: int = 3) -> Judged[Row]:
    every = comparisons(number)
    windows = [every[at : at + window] for at in range(0, number, window)]

    def to_row(comparison: Comparison, said: InBothOrders) -> Row:
        return Row(comparison.comparison_id, said.as_is, said.swapped)

    return judged_rows(folder / "rows.jsonl", Row, lambda row: row.name, judge, windows, to_row)


def test_E2_both_orders_are_asked_in_one_call_and_the_second_is_swapped() -> None:
    judge = LongerJudge()
    said = ask(judge, comparisons(3))
    (call,) = judge.calls
    assert [one.comparison_id for one in call] == ["p0/ab", "p0/ba", "p1/ab", "p1/ba", "p2/ab", "p2/ba"]
    assert [(one.first, one.second) for one in call[4:]] == [("xxx", "y"), ("y", "xxx")]
    assert said == [("tie", "tie"), ("tie", "tie"), ("first", "second")]
    assert all(one.agree for one in said)


def test_E2_a_judge_that_looks_at_the_position_alone_never_agrees_with_itself() -> None:
    assert [one.agree for one in ask(FirstJudge(), comparisons(4))] == [False] * 4
    assert [InBothOrders("tie", other).agree for other in ("tie", "first")] == [True, False]


def test_a_judge_that_leaves_one_out_or_says_something_else_is_refused() -> None:
    class Short(FirstJudge):
        def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
            return ["first"] * (len(comparisons) - 1)

    class Odd(FirstJudge):
        def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
            return ["first", "neither", *["first"] * (len(comparisons) - 2)]  # type: ignore[list-item]

    with pytest.raises(DataError, match="judge first: 3 preferences for 4 comparisons"):
        ask(Short(), comparisons(2))
    with pytest.raises(DataError, match="comparison p0/ba: said 'neither', expected first, second or tie"):
        ask(Odd(), comparisons(2))


def test_rows_stand_in_order_and_the_cost_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = RandomJudge()
    found = judged(tmp_path, judge)
    assert [row.name for row in found.rows] == [f"p{at}" for at in range(7)]
    assert [len(call) for call in judge.calls] == [6, 6, 2]
    assert found.counts == {"asked": 14, "unreadable": 0}
    assert capsys.readouterr().out.splitlines()[0] == "random: 14 comparisons, free of charge"


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_killed_run_asks_only_what_is_missing_and_gives_the_same(tmp_path: Path, calls: int) -> None:
    (tmp_path / "whole").mkdir()
    expected = judged(tmp_path / "whole", RandomJudge())

    class Killed(RandomJudge):
        def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
            if len(self.calls) == calls:
                self._asked = 2  # of the window were answered, and paid for
                raise KeyboardInterrupt
            return super().prefer(comparisons)

    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, Killed())
    path = tmp_path / "rows.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    assert len(kept) == 3 * calls
    if kept:  # killed while the last window was written
        path.write_text("".join(kept[:-1]) + kept[-1][:9])
    again = RandomJudge()
    found = judged(tmp_path, again)
    assert found.rows == expected.rows
    # the window that is whole is not asked again, the one that was torn is, with all its company
    assert next(one.comparison_id for call in again.calls for one in call) == f"p{3 * max(0, calls - 1)}/ab"
    assert sorted(path.read_text().splitlines()) == sorted((tmp_path / "whole" / "rows.jsonl").read_text().splitlines())


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_what_was_paid_for_is_counted_also_where_it_was_asked_twice_or_in_vain(tmp_path: Path, calls: int) -> None:
    class Killed(RandomJudge):
        def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
            if len(self.calls) == calls:
                self._asked = 2
                raise KeyboardInterrupt
            return super().prefer(comparisons)

    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, Killed())
    path = tmp_path / "rows.jsonl"
    twice = 6 if calls else 0
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # the last window lost a row
    assert judged(tmp_path, RandomJudge()).counts == {"asked": 14 + 2 + twice, "unreadable": 0}


class BlindJudge(FakeJudge):
    """Cannot read what is named, each time that it is asked."""

    name = "blind"

    def __init__(self, *unreadable: str) -> None:
        super().__init__()
        self.unreadable = set(unreadable)

    def preference(self, comparison: Comparison) -> Preference:
        return "tie" if self._blind(comparison) else "first"

    def counts(self) -> dict[str, int]:
        return super().counts() | {"unreadable": sum(map(self._blind, self.calls[-1]))}

    def _blind(self, comparison: Comparison) -> bool:
        return comparison.comparison_id.split("/")[0] in self.unreadable


def test_one_window_that_cannot_be_read_ends_nothing(tmp_path: Path) -> None:
    for number, window, last in ((7, 3, "p6"), (33, 32, "p32"), (68, 17, "p33")):
        (folder := tmp_path / last).mkdir()
        found = judged(folder, BlindJudge(last), number, window)
        assert (len(found.rows), found.counts["unreadable"]) == (number, 2)


def test_a_judge_that_cannot_read_most_is_refused_and_a_restart_asks_it_again(tmp_path: Path) -> None:
    blind = BlindJudge(*(f"p{at}" for at in range(3, 7)))
    with pytest.raises(DataError, match="judge blind: 8 of 14 comparisons unreadable, expected at most half") as caught:
        judged(tmp_path, blind)
    assert "\n" not in str(caught.value)
    assert len(blind.calls) == 3  # few comparisons are asked about to the end
    found = judged(tmp_path, BlindJudge("p1"))
    assert (len(found.rows), found.counts) == (7, {"asked": 28, "unreadable": 2})


def test_most_of_64_are_enough_to_refuse(tmp_path: Path) -> None:
    blind = BlindJudge(*(f"p{at}" for at in range(17)))  # a whole window of 34, which alone is too few to tell
    with pytest.raises(DataError, match="34 of 64 comparisons unreadable"):
        judged(tmp_path, blind, 100, 16)
    assert [len(call) for call in blind.calls] == [32, 32]
    (tmp_path / "half").mkdir()
    assert len(judged(tmp_path / "half", BlindJudge(*(f"p{at}" for at in range(16))), 100, 16).rows) == 100


def test_what_is_there_is_not_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = judged(tmp_path, LongerJudge())
    capsys.readouterr()
    judge = LongerJudge()
    assert judged(tmp_path, judge) == first
    assert judge.calls == []
    assert "free of charge" not in capsys.readouterr().out
