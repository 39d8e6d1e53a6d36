"""Asking a judge about many comparisons, each in both orders, and keeping what it said as it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, get_args

from pydantic.dataclasses import dataclass as validated_dataclass

from lightning_dadpo.data.rows import STRICT, RowWriter, read_rows
from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.judges import Comparison, Judge, Preference
from lightning_dadpo.progress import progress

__all__ = ["UNREADABLE", "InBothOrders", "Judged", "ask", "both_orders", "judged_rows", "refuse_unreadable"]

Row = TypeVar("Row")

CALLS = "calls.jsonl"
UNREADABLE = "unreadable"
"""Among a judge's counts: comparisons that it could not read. The others say what was asked for."""

ENOUGH_TO_REFUSE = 64
"""Comparisons after which a judge that cannot read most of them is not asked about the rest."""

OTHER: dict[Preference, Preference] = {"first": "second", "second": "first", "tie": "tie"}
"""A preference among two responses, as it is called once they are swapped."""


class InBothOrders(NamedTuple):
    """What a judge said of one comparison as it stands, and with its responses swapped."""

    as_is: Preference
    swapped: Preference

    @property
    def agree(self) -> bool:
        """Both name the same response, or both a tie."""
        return self.swapped == OTHER[self.as_is]


@dataclass(frozen=True)
class Judged(Generic[Row]):
    """Rows in the order of their comparisons, and what the judge counted on the way.

    Attributes:
        rows: one a comparison.
        counts: `unreadable` ones among the comparisons of these rows. All else, such as calls and tokens, is summed
            over everything that was asked, also twice and also in vain; only of the window during which a process was
            killed outright, without a chance to write, is nothing known.
    """

    rows: list[Row]
    counts: dict[str, int]


@validated_dataclass(frozen=True, config=STRICT)
class CallRow:
    """What the judge counted in one call, which is named by its first comparison."""

    first: str
    counts: dict[str, int]


def judged_rows(
    path: Path,
    row_type: type[Row],
    key: Callable[[Row], str],
    judge: Judge,
    windows: Sequence[Sequence[Comparison]],
    to_row: Callable[[Comparison, InBothOrders], Row],
) -> Judged[Row]:
    """A row for every comparison; what a killed run has written already is not asked again.

    What it will cost is said before the judge is asked.

    Args:
        path: JSONL file of rows, written a window at a time; `calls.jsonl` beside it holds what the judge counted. A
            refused judge leaves no rows: a restart asks again, though not for what the judge keeps itself.
        row_type: its dataclass.
        key: the comparison_id of a row.
        judge: who decides.
        windows: comparisons that are asked about in one call. Of a window that was written in part, all is asked again:
            a comparison's company may decide a close call.
        to_row: a comparison with what was said of it, as a row.

    Raises:
        DataError: the judge cannot read most of the comparisons; said early, once `ENOUGH_TO_REFUSE` were asked.
    """
    counted = path.with_name(CALLS)
    with RowWriter(path) as writer, RowWriter(counted) as calls:
        done = {key(row): row for row in read_rows(path, row_type)}
        whole = [window for window in windows if all(one.comparison_id in done for one in window)]
        open_ = [window for window in windows if any(one.comparison_id not in done for one in window)]
        if open_:
            asked = both_orders([one for window in open_ for one in window])
            print(f"{judge.name}: {judge.cost(asked)}", flush=True)
        with progress("judging (pairs)", sum(map(len, windows)), len(done)) as bar:
            for window in open_:
                try:
                    said = ask(judge, window)
                finally:  # also of what was paid for in vain; before the rows, so that no window is whole without it
                    calls.write(CallRow(window[0].comparison_id, judge.counts()))
                rows = {
                    one.comparison_id: to_row(one, both)
                    for one, both in zip(window, said, strict=True)
                    if one.comparison_id not in done
                }
                writer.write(*rows.values())
                done |= rows
                whole.append(window)
                bar.advance(len(rows))
                if 2 * sum(map(len, whole)) >= ENOUGH_TO_REFUSE:
                    _refuse(path, judge, whole)
    _refuse(path, judge, windows)
    return Judged([done[one.comparison_id] for window in windows for one in window], _counts(counted, windows))


def refuse_unreadable(judge: Judge, unreadable: int, asked: int) -> None:
    """Refuse a judge that cannot read most of so many comparisons: its ties would say nothing of the responses.

    Raises:
        DataError: it is such a judge.
    """
    if 2 * unreadable > asked:
        raise DataError(
            f"judge {judge.name}: {unreadable} of {asked} comparisons unreadable, expected at most half; for examples "
            "see what was printed before"
        )


def _refuse(path: Path, judge: Judge, windows: Sequence[Sequence[Comparison]]) -> None:
    """Refuse a judge that could not read most of these windows, and forget what it said of any."""
    unreadable = _counts(path.with_name(CALLS), windows).get(UNREADABLE, 0)
    try:
        refuse_unreadable(judge, unreadable, 2 * sum(map(len, windows)))
    except DataError:
        path.unlink()
        raise


def _counts(counted: Path, windows: Sequence[Sequence[Comparison]]) -> dict[str, int]:
    """What was asked for in all, and what is unreadable by the latest call of each of these windows."""
    total: Counter[str] = Counter()
    unreadable: dict[str, int] = {}
    for call in read_rows(counted, CallRow):
        total.update({name: count for name, count in call.counts.items() if name != UNREADABLE})
        if UNREADABLE in call.counts:
            unreadable[call.first] = call.counts[UNREADABLE]
    if unreadable:
        total[UNREADABLE] = sum(unreadable.get(window[0].comparison_id, 0) for window in windows)
    return dict(total)


def ask(judge: Judge, comparisons: Sequence[Comparison]) -> list[InBothOrders]:
    """Ask a judge about each comparison in both orders, in one call.

    Raises:
        DataError: the judge left one out or said something else than first, second or tie; or what it raises itself.
    """
    asked = both_orders(comparisons)
    said = judge.prefer(asked)
    if len(said) != len(asked):
        raise DataError(f"judge {judge.name}: {len(said)} preferences for {len(asked)} comparisons, expected one each")
    for comparison, preference in zip(asked, said, strict=True):
        if preference not in get_args(Preference):
            raise DataError(
                f"judge {judge.name}, comparison {comparison.comparison_id}: said {preference!r}, expected first, "
                "second or tie"
            )
    return [InBothOrders(*both) for both in zip(said[::2], said[1::2], strict=True)]


def both_orders(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Each comparison as it stands (ID/ab) and with its responses swapped (ID/ba), next to one another."""
    return [
        asked
        for one in comparisons
        for asked in (
            Comparison(f"{one.comparison_id}/ab", one.messages, one.first, one.second),
            Comparison(f"{one.comparison_id}/ba", one.messages, one.second, one.first),
        )
    ]
