"""The fault drill: `python -m tests.integration.drill FOLDER SEED`.

An experiment is run undisturbed, and what each of its stages comes to is written down: rows, files, micro-batches. Then
it is run again, and killed at moments drawn from these. All processes are forked from this one, which imports
everything and runs nothing, so that beginning again costs no imports. What is killed is a stage, or `dadpo run` with
its stage, or `dadpo run` alone, whose stage then lives on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_dadpo.cli import running
from tests.faults import Fault, arm, record
from tests.forks import become, import_everything, run
from tests.integration.experiment import write_experiment

__all__ = ["Kill", "main"]

Whom = Literal["stage", "both", "run"]
DRAWS = 3
"""Kills that are tried on each stage."""
RUN = "run"
"""The name under which `dadpo run` itself is listed among the stages."""
SURELY: dict[str, list[tuple[str, Whom]]] = {
    "dsft": [("half a file last.ckpt", "both"), ("micro-batch", "run")],
    "ddpo": [("micro-batch", "stage"), ("before a rename last.ckpt", "both")],
    "dadpo": [("validation", "stage"), ("half a file last.ckpt", "stage")],
    "sample-rejected": [("half a row", "run"), ("before a rename folder", "both")],
    "score-teacher": [("half a file manifest.json", "both")],
}
"""Kills that no draw may leave out."""
LIMIT = 400
"""Seconds for everything."""


@dataclass(frozen=True)
class Kill:
    """One kill that happened.

    Attributes:
        stage: where.
        event: at which moment.
        number: of the moments of that kind in that process.
        whom: the stage's process, `dadpo run` and the stage, or `dadpo run` alone.
    """

    stage: str
    event: str
    number: int
    whom: Whom


class Walk:
    """One experiment's folder, and what is to happen there."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.experiment = write_experiment(folder, **changes)
        self.kills, self.go = folder / "kills.jsonl", folder / "go"
        self.deadline = time.monotonic() + LIMIT

    def attempt(self, pending: dict[str, list[tuple[Fault, Whom]]], recording: Path | None = None) -> int:
        """`dadpo run`, forked; a stage that is started takes the first of the faults that wait for it."""
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.setpgid(0, 0)
                said = self.folder / "said"
                become(["run", str(self.experiment)], self.folder, said, {"DADPO_TEST_DRILL": "1"})
                status = self._run(pending, recording)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        return self._wait(child)

    def _wait(self, child: int) -> int:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > self.deadline:
                os.killpg(child, signal.SIGKILL)
                raise TimeoutError((self.folder / "said.out").read_text() + (self.folder / "said.err").read_text())
            time.sleep(0.005)

    def _run(self, pending: dict[str, list[tuple[Fault, Whom]]], recording: Path | None) -> int:
        running._start = lambda command: self._start(command, pending, recording)  # type: ignore[assignment]
        self._arm(RUN, pending, recording)
        return run([])

    def _start(self, command: list[str], pending: dict[str, list[tuple[Fault, Whom]]], recording: Path | None) -> int:
        """A stage as `dadpo run` would start it, forked."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.environ["DADPO_IN_EXPERIMENT"] = "1"
                sys.argv = ["dadpo", *command[command.index("lightning_dadpo") + 1 :]]
                self._arm(stage_of(command), pending, recording)
                status = run([])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _arm(self, stage: str, pending: dict[str, list[tuple[Fault, Whom]]], recording: Path | None) -> None:
        under = self.folder / "run"
        if recording is not None:
            record(recording / stage, under)
        elif pending.get(stage):
            fault, whom = pending[stage][0]
            self._note({"armed": stage})
            arm(fault, under, self._act(Kill(stage, fault.event, fault.number, whom)))

    def _act(self, kill: Kill) -> Callable[[], None]:
        def act() -> None:
            self._note(asdict(kill) | {"process": os.getpid()})
            if kill.whom == "both":
                os.killpg(0, signal.SIGKILL)
            if kill.whom == "run":
                os.kill(os.getppid(), signal.SIGKILL)
                while not self.go.exists():  # at work for as long as it takes to begin again beside it
                    time.sleep(0.01)
                return
            os.kill(os.getpid(), signal.SIGKILL)

        return act

    def _note(self, row: dict[str, Any]) -> None:
        with self.kills.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def notes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.kills.read_text().splitlines()] if self.kills.exists() else []


def stage_of(command: list[str]) -> str:
    """`sample-teacher` of a command with settings/sample-teacher-1a2b3c4d.yaml."""
    files = [Path(part) for part in command if "/settings/" in part]
    return files[-1].stem.rsplit("-", 1)[0] if files else "report"


def draw(events: dict[str, list[str]], chance: random.Random) -> dict[str, list[tuple[Fault, Whom]]]:
    """Kills for every stage: first a kind of moment, so that rare ones are hit too, then one of them."""
    pending: dict[str, list[tuple[Fault, Whom]]] = defaultdict(list)
    for stage, seen in events.items():
        kills = list(SURELY.get(stage, []))
        while len(kills) < DRAWS:
            whom: Whom = "stage" if stage == RUN else chance.choice(["stage", "stage", "both"])
            kills.append((chance.choice(sorted(set(seen))), whom))
        for event, whom in kills:
            # a run that goes on has fewer moments left
            pending[stage].append((Fault(event, chance.randint(1, -(-seen.count(event) // 2))), whom))
    return pending


def begin_again_beside_it(walk: Walk, process: int) -> bool:
    """Whether a run that is begun while the orphan of another is at work is refused; waits for the orphan's end."""
    status = walk.attempt({})
    said = (walk.folder / "said.err").read_text()
    walk.go.touch()
    while Path(f"/proc/{process}").exists() and _state(process) != "Z":
        time.sleep(0.01)
    walk.go.unlink()
    return status == 2 and "another" in said


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def main(folder: Path, seed: int) -> None:
    """Run, record, draw, kill; `report.json` says what happened."""
    import_everything()
    undisturbed, events = Walk(folder / "undisturbed"), folder / "events"
    events.mkdir()
    assert undisturbed.attempt({}, events) == 0, (undisturbed.folder / "said.err").read_text()
    seen = {path.name: path.read_text().splitlines() for path in events.iterdir() if path.stat().st_size}

    walk, refused = Walk(folder / "killed"), []
    pending, handled, attempts = draw(dict(sorted(seen.items())), random.Random(seed)), 0, 0
    status = -1
    while status != 0:
        attempts += 1
        status = walk.attempt(pending)
        for note in walk.notes()[handled:]:
            handled += 1
            if "armed" in note:
                pending[note["armed"]].pop(0)
            elif note["whom"] == "run":
                refused.append(begin_again_beside_it(walk, note["process"]))
        assert status <= 0 or handled, (walk.folder / "said.err").read_text()
    kills = [note for note in walk.notes() if "armed" not in note]
    report = {
        "kills": kills, "refused": refused, "attempts": attempts,
        "stages": dict(Counter(kill["stage"] for kill in kills)),
        "events": dict(Counter(kill["event"] for kill in kills)),
        "whom": dict(Counter(kill["whom"] for kill in kills)),
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
