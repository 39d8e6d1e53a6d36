"""How the ranks of one launch know of each other while they make one artefact: by a file each, without a network.

A rank locks its file while it works and writes there how far it is. The operating system lets go of the lock when the
process ends, however it ends: a rank whose file is free, and which has not said that it is done, has died. Locks and
files are seen from other machines where the folder lies on a file system that they share.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any, Protocol

from lightning_dadpo.data.artifacts import MANIFEST, RANKS, partial_of, refuse_other
from lightning_dadpo.data.ranks import Ranks
from lightning_dadpo.errors import ArtifactError

__all__ = ["Company", "Leader", "Follower", "LeaderStoppedError"]

ARRIVAL_SECONDS = 600.0
"""Machines do not read weights equally fast; a rank that is later than this was not started."""
RENAME_SECONDS = 60.0
"""Another machine may see that late that a folder was renamed."""
LOOK_SECONDS = 0.5
SAY_SECONDS = 5.0
GOES_ON = "what was finished is kept; the same command goes on there"


class LeaderStoppedError(ArtifactError):
    """Rank 0 has stopped and has said why; nothing more needs to be said."""


class Company(Protocol):
    """The other ranks, as one of them sees them."""

    @property
    def ranks(self) -> Ranks:
        """This process."""

    def look(self) -> bool:
        """Whether this rank need not wait for the others before it goes on.

        Raises:
            ArtifactError: a rank is gone, so that the artefact cannot be completed.
        """

    def others_rows(self) -> int:
        """Rows that the others have finished, as far as they have told rank 0."""

    def say(self, rows: int) -> None:
        """Rows that this rank has finished so far."""

    def done(self) -> None:
        """All of this rank's rows are written."""


class _Place:
    """A rank's own file, held until it is left.

    Raises:
        FileExistsError: another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def say(self, **facts: Any) -> None:
        os.write(self._file, (json.dumps(facts) + "\n").encode())

    def leave(self, error: BaseException | None) -> None:
        if error is not None:
            self.say(failed=" ".join(str(error).split()) or type(error).__name__)
        os.close(self._file)


def _held(path: Path) -> bool:
    """Whether a process that lives holds this file."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _said(path: Path) -> dict[str, Any]:
    """What a rank has said, the latest of each fact; nothing where it has not come."""
    facts: dict[str, Any] = {}
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return facts
    for line in lines:
        if line.endswith(b"\n"):
            facts |= json.loads(line)
    return facts


def _oneself() -> dict[str, Any]:
    return {"process": os.getpid(), "machine": socket.gethostname()}


def _who(rank: int | str, said: dict[str, Any]) -> str:
    return f"rank {rank} (process {said['process']} on {said['machine']})" if "process" in said else f"rank {rank}"


class Leader:
    """Rank 0: opens the company, and stays until the artefact is there.

    Args:
        partial: the draft's folder, which this process has locked.
        ranks: this process.

    Raises:
        ArtifactError: a rank of an earlier launch is still at work there.
    """

    def __init__(self, partial: Path, ranks: Ranks) -> None:
        self.partial, self.ranks, self._folder = partial, ranks, partial / RANKS
        for path in self._folder.glob("*"):
            if _held(path):
                who = _who(path.name, _said(path))
                raise ArtifactError(f"{partial}: {who} of an earlier launch still works there; wait for it or stop it")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._others = range(1, ranks.size)
        self._looked, self._all_done = -math.inf, ranks.size == 1
        self._counted, self._rows = -math.inf, 0

    def open(self) -> None:
        """From now on the others come, and what earlier launches have left stays as it is until all are done."""
        self._folder.mkdir()
        self._place, self._since = _Place(self._folder / "0"), time.monotonic()
        self._place.say(**_oneself(), size=self.ranks.size)

    def close(self, error: BaseException | None) -> None:
        """Leave; after an error the others leave too."""
        self._place.leave(error)

    def look(self) -> bool:
        """See `Company.look`: whether all the others are done."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._all_done = all([self._is_done(rank) for rank in self._others])  # noqa: C419 - every one is looked at
            if self._all_done:
                self._counted = -math.inf
        return self._all_done

    def others_rows(self) -> int:
        """See `Company.others_rows`."""
        if time.monotonic() - self._counted >= SAY_SECONDS:
            self._counted = time.monotonic()
            self._rows = sum(_said(self._folder / str(rank)).get("rows", 0) for rank in self._others)
        return self._rows

    def say(self, rows: int) -> None:
        """Nobody asks rank 0."""

    def done(self) -> None:
        """Nobody asks rank 0."""

    def _is_done(self, rank: int) -> bool:
        path = self._folder / str(rank)
        held = _held(path)
        said = _said(path)  # behind the lock: who has let go of it has spoken before
        if "failed" in said:
            raise ArtifactError(f"rank {rank} of {self.ranks.size} stopped: {said['failed']}")
        if said and not held and "done" not in said:
            raise ArtifactError(f"{self.partial}: {_who(rank, said)} of {self.ranks.size} has died; {GOES_ON}")
        if not said and not held and time.monotonic() - self._since > ARRIVAL_SECONDS:
            raise ArtifactError(
                f"{self.partial}: rank {rank} of {self.ranks.size} has not come in {ARRIVAL_SECONDS:.0f} s; {GOES_ON}"
            )
        return "done" in said


class Follower:
    """Any other rank: comes when rank 0 is there, and leaves when the artefact is.

    Args:
        folder: the artefact.
        ranks: this process.
        made_from: what this process would make it from.

    Raises:
        ArtifactError: rank 0 does not come, or makes it from something else; or another process has this rank.
    """

    def __init__(self, folder: Path, ranks: Ranks, made_from: dict[str, Any]) -> None:
        self.folder, self.ranks = folder, ranks
        self.partial = partial_of(folder)
        self._leader = self.partial / RANKS / "0"
        self._rows, self._said_at, self._done = 0, -math.inf, False
        self._await_leader()
        refuse_other(self.partial, made_from)
        if (size := _said(self._leader).get("size")) != ranks.size:
            raise ArtifactError(f"{self.partial}: a launch of {size} processes works there, this one has {ranks.size}")
        path = self._leader.with_name(str(ranks.rank))
        try:
            self._place = _Place(path)
        except FileExistsError:
            raise ArtifactError(f"{self.partial}: {_who(ranks.rank, _said(path))} works there already") from None
        self._place.say(**_oneself())

    def _await_leader(self) -> None:
        start = time.monotonic()
        while not _held(self._leader) or "size" not in _said(self._leader):
            if time.monotonic() - start > ARRIVAL_SECONDS:
                raise ArtifactError(
                    f"{self.partial}: rank 0 of {self.ranks.size} has not come in {ARRIVAL_SECONDS:.0f} s; {GOES_ON}"
                )
            time.sleep(LOOK_SECONDS)

    def look(self) -> bool:
        """See `Company.look`; rank 0 alone waits."""
        said = _said(self._leader)
        if "failed" in said:
            raise LeaderStoppedError(f"rank 0 of {self.ranks.size} stopped: {said['failed']}")
        if not _held(self._leader):
            raise ArtifactError(f"{self.partial}: {_who(0, said)} of {self.ranks.size} has died; {GOES_ON}")
        return True

    def others_rows(self) -> int:
        """Rank 0 alone counts them."""
        return 0

    def say(self, rows: int) -> None:
        """See `Company.say`; written now and then."""
        self._rows = rows
        if time.monotonic() - self._said_at >= SAY_SECONDS:
            self._said_at = time.monotonic()
            self._place.say(rows=rows)

    def done(self) -> None:
        """See `Company.done`. The rest is rank 0's work, so that a rerun need not wait for this process."""
        self._place.say(rows=self._rows, done=True)
        self._place.leave(None)
        self._done = True

    def close(self, error: BaseException | None) -> None:
        """Leave; before the share is done rank 0 is told why."""
        if not self._done:
            self._place.leave(error)

    def await_artifact(self) -> None:
        """Come back when the artefact is there.

        Raises:
            ArtifactError: rank 0 has stopped before.
        """
        missed = math.inf
        while not (self.folder / MANIFEST).is_file():
            try:
                self.look()
                missed = math.inf
            except LeaderStoppedError:
                raise
            except ArtifactError:  # it has died, or it has renamed the folder
                missed = min(missed, time.monotonic())
                if time.monotonic() - missed > RENAME_SECONDS:
                    raise
            time.sleep(LOOK_SECONDS)
