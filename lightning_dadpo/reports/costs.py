"""What a model weighs and what an answer costs: before and after. Says of every number whether it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.inputs import ReportInputs
from lightning_dadpo.reports.sources import read_each
from lightning_dadpo.reports.table import TEACHER, display_name, number
from lightning_dadpo.reports.weights import Weights, read_weights

__all__ = ["CostRow", "CostSection", "Speed", "cost_section", "read_speed", "duration"]

UNKNOWN = "not known"


@dataclass(frozen=True)
class Speed:
    """One sampling: how many tokens in how many seconds, and under which terms.

    The seconds are those of the process that finished it; where it was `resumed`, they made only some of the tokens.
    """

    tokens: int
    seconds: float
    responses: int
    backend: str
    batch_size: Any
    resumed: bool = False

    @property
    def rate(self) -> float:
        """Tokens a second; nan where the time that they took was not measured."""
        return self.tokens / self.seconds if self.seconds > 0 and not self.resumed else math.nan

    def on_equal_terms(self, other: Speed) -> bool:
        """Batches as full, by the same software: only then do two rates compare models."""
        mine, theirs = ((one.responses, one.backend, one.batch_size) for one in (self, other))
        return mine == theirs


@dataclass(frozen=True)
class CostRow:
    """One property of both models; `share` is the student's of the teacher's, `how` where the numbers are from."""

    label: str
    teacher: str
    student: str
    share: str
    how: str


@dataclass
class CostSection:
    """Rows for page one, sentences on files, speed and what making it took; every sampling for the engineer."""

    rows: list[CostRow] = field(default_factory=list)
    files: str = ""
    speed: str = ""
    making: str = ""
    samplings: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_speed(folder: Path) -> Speed:
    """Tokens and seconds of a sampling.

    Raises:
        ArtifactError: the folder is no finished artefact. DataError: it does not say how many tokens it holds.
    """
    manifest = read_manifest(folder, "responses")
    tokens, responses = manifest.counts.get("tokens"), manifest.counts.get("responses")
    if not isinstance(tokens, int) or not isinstance(responses, int):
        raise DataError(f"{folder}: its manifest does not count tokens and responses")
    said = manifest.made_from
    backend = str(said.get("backend", "not recorded"))
    return Speed(tokens, manifest.seconds, responses, backend, said.get("batch_size"), manifest.resumed)


def cost_section(inputs: ReportInputs, student: str | None) -> CostSection:
    """Teacher and student beside each other.

    Args:
        inputs: of the report.
        student: the student in question; None where there is none.
    """
    section = CostSection(making=_making(inputs.stages))
    weights, section.problems = read_each(inputs.models, read_weights)
    speeds, problems = read_each(inputs.responses, read_speed)
    section.problems += problems
    section.samplings = [_sampling(name, one) for name, one in speeds.items()]
    rows = {str(row.get("model")): row for row in inputs.summary}
    if student is None or student not in rows:
        return section
    counts = [_count(rows.get(name, {})) for name in (TEACHER, student)]
    files = [weights.get(name) for name in (TEACHER, student)]
    section.rows = [
        _row("Parameters", counts, lambda n: f"{_three(n / 1e6)} million", "counted"),
        _disk(files),
        _row("Memory, weights alone", _times(counts, 2), _bytes, "computed"),
        _row("Work per token", _times(counts, 2), _operations, "computed"),
    ]
    section.files = _formats(files, _share(counts))
    section.speed = _speed(speeds.get(TEACHER), speeds.get(student))
    return section


def _count(row: Mapping[str, Any]) -> float | None:
    found = number(row, "parameters")
    return found if found is not None and math.isfinite(found) and found > 0 else None


def _times(values: Sequence[float | None], factor: float) -> list[float | None]:
    return [None if value is None else value * factor for value in values]


def _share(values: Sequence[float | None]) -> str:
    teacher, student = values
    return UNKNOWN if not teacher or student is None else f"{100 * student / teacher:.0f}\u00a0%"


def _row(label: str, values: Sequence[float | None], say: Any, how: str) -> CostRow:
    teacher, student = (UNKNOWN if value is None else say(value) for value in values)
    return CostRow(label, teacher, student, _share(values), how)


def _disk(files: Sequence[Weights | None]) -> CostRow:
    teacher, student = (UNKNOWN if one is None else f"{_bytes(one.size)} ({one.words})" for one in files)
    share = _share([None if one is None else one.size for one in files])
    return CostRow("Files on disk", teacher, student, share, "measured")


def _formats(files: Sequence[Weights | None], share: str) -> str:
    """What keeps two sizes on disk from comparing the models; nothing where they do.

    Args:
        files: of teacher and student. share: of parameters, the student's of the teacher's.
    """
    teacher, student = files
    if teacher is None or student is None or teacher.words == student.words:
        return ""
    alike = "" if share == UNKNOWN else f"; in one format the student's would be {share} of the teacher's"
    return f"Files differ in format{alike}."


def _three(value: float) -> str:
    """Three or four digits and no exponent."""
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _bytes(size: float) -> str:
    if size < 1e6:
        return f"{size / 1e3:.3g}\u00a0kB"
    return f"{size / 1e9:.2f}\u00a0GB" if size >= 1e9 else f"{size / 1e6:.3g}\u00a0MB"


def _operations(count: float) -> str:
    return f"{count / 1e9:.2f}\u00a0billion steps"


def _speed(teacher: Speed | None, student: Speed | None) -> str:
    """Two rates where they compare the models, and nothing where they would not."""
    if teacher is None or student is None:
        return "Speed was not measured."
    if not teacher.on_equal_terms(student) or not (teacher.rate > 0 and student.rate > 0):
        return "Speed is not given: the two were not timed on equal terms (as many prompts at a time, no break)."
    return (
        f"Speed on equally many prompts, measured once: teacher {teacher.rate:.0f}, student "
        f"{student.rate:.0f} tokens a second."
    )


def _sampling(name: str, one: Speed) -> list[str]:
    rate = f"{one.rate:.1f}" if math.isfinite(one.rate) else UNKNOWN
    time = f"more than {duration(one.seconds)}" if one.resumed else duration(one.seconds)
    return [display_name(name), str(one.responses), str(one.tokens), time, rate, one.backend, str(one.batch_size)]


def duration(seconds: Any) -> str:
    """Seconds as people say them."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _making(stages: Sequence[Mapping[str, Any]]) -> str:
    times = [stage.get("seconds") for stage in stages]
    known = [time for time in times if isinstance(time, int | float) and math.isfinite(time)]
    if not known:
        return ""
    rest = f"; {len(times) - len(known)} stages have no time" if len(known) < len(times) else ""
    return f"Making and measuring every model of this report took {duration(math.fsum(known))} of computing{rest}."
