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
    class Short(FakeJudge):
        def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
            return ["first"] * (len(comparisons) - 1)

    class Odd(FakeJudge):
        def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
            return ["first", "neither", *["first"] * (len(comparisons) - 2)]  # type: ignore[list-item]

    with pytest.raises(DataError, match="judge fake: 3 preferences for 4 comparisons"):
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
    assert judged(tmp_path, again) == expected
    # the window that is whole is not asked again, the one that was torn is, with all its company
    assert next(one.comparison_id for call in again.calls for one in call) == f"p{3 * max(0, calls - 1)}/ab"
    assert sorted(path.read_text().splitlines()) == sorted((tmp_path / "whole" / "rows.jsonl").read_text().splitlines())


def test_what_is_there_is_not_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = judged(tmp_path, LongerJudge())
    capsys.readouterr()
    judge = LongerJudge()
    assert judged(tmp_path, judge) == first
    assert judge.calls == []
    assert "free of charge" not in capsys.readouterr().out
