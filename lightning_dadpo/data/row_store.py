"""Rows that stay on disk: validated once, counted, and parsed again when they are asked for.

So that memory does not grow with the number of pairs: of each row its place in the file is kept, and the few whole
numbers that a plan needs.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar, overload

from lightning_dadpo.data.rows import parse_row
from lightning_dadpo.errors import DataError

__all__ = ["RowStore", "column"]

Row = TypeVar("Row")
Measure = Callable[[Row], int]


class RowStore(Sequence[Row], Generic[Row]):
    """The rows of a JSONL file as a sequence that holds none of them.

    Args:
        path: the file; it must stay as it is.
        row_type: what its lines are.
        measures: whole numbers that are wanted of every row, taken while the file is read for the first time.
        keep: rows for which it says no are validated, and left out.
        view: what becomes of a row that is kept, each time it is asked for; `measures` see that.

    Attributes:
        columns: what each of `measures` gave to each row.

    Raises:
        DataError: the file is missing, or a line is not such a row (file:line first).
    """

    def __init__(
        self,
        path: str | Path,
        row_type: type[Row],
        measures: Iterable[Measure[Row]] = (),
        keep: Callable[[Row], bool] = lambda row: True,
        view: Callable[[Row], Row] = lambda row: row,
    ) -> None:
        self.path, self.row_type, self.view = Path(path), row_type, view
        self.columns: dict[Measure[Row], array[int]] = {measure: array("q") for measure in measures}
        self._lines, self._places = array("q"), array("q")
        if not self.path.is_file():
            raise DataError(f"{path}: no such file")
        place = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and keep(row := self._parse(line, number)):
                    self._lines.append(number)
                    self._places.append(place)
                    seen = view(row)
                    for measure, values in self.columns.items():
                        values.append(measure(seen))
                place += len(line)

    def _parse(self, line: bytes, number: int) -> Row:
        return parse_row(line, self.row_type, f"{self.path}:{number}")

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        indices = range(len(self))[index]
        if isinstance(indices, int):
            return next(self._read([indices]))
        return list(self._read(indices))

    def __iter__(self) -> Iterator[Row]:
        return self._read(range(len(self)))

    def take(self, indices: Iterable[int]) -> list[Row]:
        """These rows, in the order in which they are asked for."""
        return list(self._read(indices))

    def _read(self, indices: Iterable[int]) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for index in indices:
                file.seek(self._places[index])
                yield self.view(self._parse(file.readline(), self._lines[index]))


def column(rows: Sequence[Row], measure: Measure[Row]) -> Sequence[int]:
    """What `measure` gives to each row; a store that was asked for it when it was read knows it already."""
    if isinstance(rows, RowStore) and measure in rows.columns:
        return rows.columns[measure]
    return array("q", map(measure, rows))
