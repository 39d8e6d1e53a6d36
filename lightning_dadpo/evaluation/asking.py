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

__all__ = ["InBothOrders", "Judged", "ask", "both_orders", "judged_rows"]

Row = TypeVar("Row")

CALLS = "calls.jsonl"
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
    """Rows in the order of their comparisons, and what the judge counted on the way."""

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
        path: JSONL file of rows, written a window at a time; `calls.jsonl` beside it holds what the judge counted.
        row_type: its dataclass.
        key: the comparison_id of a row.
        judge: who decides.
        windows: comparisons that are asked about in one call. Of a window that was written in part, all is asked again:
            a comparison's company may decide a close call.
        to_row: a comparison with what was said of it, as a row.

    """
    counted = path.with_name(CALLS)
    with RowWriter(path) as writer, RowWriter(counted) as calls:
        done = {key(row): row for row in read_rows(path, row_type)}
        open_ = [window for window in windows if any(one.comparison_id not in done for one in window)]
        if open_:
            asked = both_orders([one for window in open_ for one in window])
            print(f"{judge.name}: {judge.cost(asked)}", flush=True)
        with progress("judging (pairs)", sum(map(len, windows)), len(done)) as bar:
            for window in open_:
                said = zip(window, ask(judge, window), strict=True)
                rows = {one.comparison_id: to_row(one, both) for one, both in said if one.comparison_id not in done}
                # first of all, so that no window is whole without its counts
                calls.write(CallRow(window[0].comparison_id, judge.counts()))
                writer.write(*rows.values())
                done |= rows
                bar.advance(len(rows))
    # of a window that was asked twice, the latest counts
    latest = {call.first: call.counts for call in read_rows(counted, CallRow)}
    total: Counter[str] = Counter()
    for counts in latest.values():
        total.update(counts)
    return Judged([done[one.comparison_id] for window in windows for one in window], dict(total))


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
