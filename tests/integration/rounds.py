"""Two rounds of two objectives: `python -m tests.integration.rounds FOLDER`.

An experiment is run, killed in four stages of its second round, and run once more when everything is there. Then the
same folder goes on with a reference that moves. Processes are forked from this one, as in the drill. Which pairs each
scores artefact asked a model about is written down, audits not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from lightning_dadpo.scoring import stage as scoring
from tests.faults import Fault
from tests.forks import import_everything
from tests.integration.drill import Walk

__all__ = ["main"]

CHANGES: dict[str, Any] = {"rounds": 2, "mix": {"earlier": 0.5}}
KILLS = {
    "sample-rejected-ddpo-round2": [(Fault("half a row", 1), "both")],
    "pairs-dadpo-round2": [(Fault("before a rename folder", 1), "both")],
    "dadpo-round2": [(Fault("micro-batch", 2), "both")],
    "teacher-scores-dadpo-round2": [(Fault("half a file manifest.json", 1), "stage")],
}


def note_scored(folder: Path) -> None:
    """From now on, a line for every pair that a model is asked about for a scores artefact."""
    real_all, real_rows, current = scoring._score_all, scoring._rows, [""]

    def score_all(work: Any, *arguments: Any) -> None:
        current[0] = work.draft.path.name.rsplit("-", 1)[0]
        real_all(work, *arguments)

    def rows(pairs: Any, scores: Any) -> Any:
        lines = "".join(f"{current[0]} {pair.pair_id}\n" for pair in pairs)
        descriptor = os.open(folder / "asked", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, lines.encode())
        os.close(descriptor)
        return real_rows(pairs, scores)

    scoring._score_all, scoring._rows = score_all, rows  # type: ignore[assignment]


def main(folder: Path) -> None:
    """Run, kill, run again; `report.json` says how the attempts ended."""
    import_everything()
    note_scored(folder)
    walk, pending = Walk(folder / "walk", **CHANGES), {name: list(kills) for name, kills in KILLS.items()}
    statuses: list[int] = []
    while not statuses or statuses[-1] != 0:
        before = len(walk.notes())
        statuses.append(walk.attempt(pending))  # type: ignore[arg-type]
        for note in walk.notes()[before:]:
            if "armed" in note:
                pending[note["armed"]].pop(0)
        assert len(statuses) <= len(KILLS) + 1, (walk.folder / "said.err").read_text()
    files = times(walk)
    again = walk.attempt({})
    said_again = (walk.folder / "said.out").read_text()
    report = {"statuses": statuses, "again": again, "untouched": files == times(walk), "said_again": said_again}
    keep(folder, "fixed", walk)
    move_reference(walk.experiment)
    report |= {"moved": walk.attempt({}), "said_moved": (walk.folder / "said.out").read_text()}
    keep(folder, "moved", walk)
    (folder / "report.json").write_text(json.dumps(report, indent=1))


def times(walk: Walk) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (walk.folder / "run").rglob("*") if path.is_file()}


def keep(folder: Path, name: str, walk: Walk) -> None:
    """What the next run of the experiment would write over, and who was asked until now."""
    (folder / name).mkdir()
    for file in ("experiment.json", "rounds.json", "summary.json"):
        shutil.copy(walk.folder / "run" / file, folder / name)
    (folder / "asked").rename(folder / name / "asked")


def move_reference(experiment: Path) -> None:
    """One objective is enough for that."""
    said = yaml.safe_load(experiment.read_text("utf-8"))
    said |= {"reference": "moved", "objectives": {"dadpo": said["objectives"]["dadpo"]}}
    experiment.write_text(yaml.safe_dump(said, sort_keys=False), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
