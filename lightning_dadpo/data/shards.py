"""Work on rows, dealt out to the ranks of a launch and put together as if one process had done it.

The work comes in pieces that are the same whoever does them: windows of prompts, batches of pairs. What earlier
launches have finished stands in `rows.jsonl` and stays as it is until all is done; every rank takes its part of the
pieces that are missing and writes to a shard of its own. Rank 0 then puts rows and shards into the order of the
pieces. One process is one rank.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning_dadpo.data.artifacts import Draft, draft, partial_of, plain
from lightning_dadpo.data.company import LOOK_SECONDS, Company, Follower, Leader
from lightning_dadpo.data.ranks import Ranks
from lightning_dadpo.data.rows import RowWriter, parse_row, read_rows
from lightning_dadpo.errors import ArtifactError
from lightning_dadpo.progress import Progress, progress

__all__ = ["SharedDraft", "shared_draft", "Share", "share"]

Row = TypeVar("Row")
ROWS = "rows.jsonl"
SHARDS = "shards"


@dataclass
class SharedDraft:
    """An artefact that several ranks make; rank 0 completes it, what others say about it is forgotten.

    Attributes:
        draft: the folder.
        company: the other ranks.
    """

    draft: Draft
    company: Company

    @property
    def leads(self) -> bool:
        """Whether this process completes it."""
        return self.company.ranks.leads


@contextmanager
def shared_draft(folder: str | Path, kind: str, made_from: dict[str, Any], ranks: Ranks) -> Iterator[SharedDraft]:
    """As `draft`, by all ranks of a launch: each leaves the block when the artefact is there, or with an error.

    Raises:
        ArtifactError: as `draft`; or a rank has not come, or has died.
    """
    folder = Path(folder)
    if ranks.leads:
        with ExitStack() as behind_the_draft, draft(folder, kind, made_from) as work:
            leader = Leader(work.path, ranks)
            _take_up(work.path)
            leader.open()
            behind_the_draft.push(lambda _, error, trace: leader.close(error))
            yield SharedDraft(work, leader)
    else:
        follower = Follower(folder, ranks, plain(made_from))
        with ExitStack() as at_last:
            at_last.push(lambda _, error, trace: follower.close(error))
            yield SharedDraft(Draft(partial_of(folder), kind, plain(made_from)), follower)
            follower.await_artifact()


def _take_up(partial: Path) -> None:
    """Whole lines of the shards that an earlier launch left go behind those of the rows."""
    rows, shards = partial / ROWS, partial / SHARDS
    with RowWriter(rows):
        pass  # makes the file, or drops a torn line
    if shards.exists():
        beside = rows.with_suffix(".new")
        with beside.open("wb") as target:
            for path in (rows, *sorted(shards.iterdir())):
                with path.open("rb") as lines:
                    target.writelines(line for line in lines if line.endswith(b"\n"))
        os.replace(beside, rows)
        shutil.rmtree(shards)
    shards.mkdir()


class Share(Generic[Row]):
    """One rank's part of the pieces that are missing, one after another.

    Args:
        others: the other ranks.
        missing: of each of this rank's pieces, by its number, the keys of the rows that it lacks.
        key: of a row.
        writer: this rank's shard.
        bar: where progress is shown.
    """

    def __init__(
        self,
        others: Company,
        missing: dict[int, set[str]],
        key: Callable[[Row], str],
        writer: RowWriter,
        bar: Progress | None,
    ) -> None:
        self._company, self._missing, self._key, self._writer, self._bar = others, missing, key, writer, bar
        self._own = self._others = 0

    def __iter__(self) -> Iterator[int]:
        """Numbers of pieces; each is to be done as a whole, whatever it lacks: company changes the last digits."""
        for number in self._missing:
            self.look()
            yield number

    def write(self, piece: int, rows: Iterable[Row]) -> None:
        """Keep those rows of a piece that it lacked."""
        self._writer.write(*(row for row in rows if self._key(row) in self._missing[piece]))

    def advance(self, rows: int) -> None:
        """So many more rows of a piece are finished."""
        self._own += rows
        self._company.say(self._own)
        self._show(rows)

    def look(self) -> bool:
        """See `Company.look`."""
        ready = self._company.look()
        self._show(0)
        return ready

    def _show(self, own: int) -> None:
        others = self._company.others_rows()
        if self._bar is not None and own + others > self._others:
            self._bar.advance(own + others - self._others)
        self._others = others


@contextmanager
def share(
    work: SharedDraft, pieces: Sequence[Sequence[str]], row_type: type[Row], key: Callable[[Row], str], what: str
) -> Iterator[Share[Row]]:
    """This rank's share of the work; when rank 0 leaves the block, `rows.jsonl` holds every row.

    What is missing is dealt out piece by piece in turn, so that pieces of like cost lie side by side.

    Args:
        work: the draft.
        pieces: of each piece of the work the keys of its rows, in the order that the rows are to have.
        row_type: what a row is.
        key: of a row. A key that stands in several pieces belongs to the first of them.
        what: the work and its unit, for the progress that rank 0 shows over the work of all ranks.

    Raises:
        ArtifactError: another rank is gone.
    """
    path, ranks = work.draft.path, work.company.ranks
    lacks = _missing(pieces, {key(row) for row in read_rows(path / ROWS, row_type)})
    total, waiting = sum(map(len, pieces)), sum(len(pieces[piece]) for piece in lacks)
    own = dict(list(lacks.items())[ranks.rank :: ranks.size])
    with progress(what, total, total - waiting) if work.leads else nullcontext() as bar:
        with RowWriter(path / SHARDS / f"{ranks.rank}.jsonl") as writer:
            made = Share(work.company, own, key, writer, bar)
            yield made
        work.company.done()
        while not made.look():
            time.sleep(LOOK_SECONDS)
    if work.leads:
        _merge(path, row_type, key, dict.fromkeys(one for piece in pieces for one in piece))


def _missing(pieces: Sequence[Sequence[str]], there: set[str]) -> dict[int, set[str]]:
    """The pieces that are not whole, by number, each with the keys that it lacks."""
    lacks: dict[int, set[str]] = {}
    seen: set[str] = set()
    for number, keys in enumerate(pieces):
        wanted = set(keys) - seen
        seen |= wanted
        if not wanted <= there:
            lacks[number] = wanted - there
    return lacks


def _merge(partial: Path, row_type: type[Row], key: Callable[[Row], str], order: Iterable[str]) -> None:
    """Rows and shards as one file, whole or not at all; rows stay on disk, and every one is validated."""
    rows, files = partial / ROWS, [partial / ROWS, *sorted((partial / SHARDS).iterdir())]
    places: dict[str, tuple[int, int]] = {}
    for number, path in enumerate(files):
        start = 0
        with path.open("rb") as lines:
            for count, line in enumerate(lines, 1):
                if line.strip():
                    places.setdefault(key(parse_row(line, row_type, f"{path}:{count}")), (number, start))
                start += len(line)
    beside = rows.with_suffix(".new")
    with ExitStack() as opened, beside.open("wb") as target:
        sources = [opened.enter_context(path.open("rb")) for path in files]
        for wanted in order:
            if wanted not in places:
                raise ArtifactError(f"{partial}: no row for {wanted}, though its rank was done; start the stage again")
            number, start = places[wanted]
            sources[number].seek(start)
            target.write(sources[number].readline())
    os.replace(beside, rows)
    shutil.rmtree(partial / SHARDS)
