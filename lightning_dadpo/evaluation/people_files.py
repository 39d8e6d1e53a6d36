"""Which files hold people's judgements; experiments name them, so nothing heavy is imported here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lightning_dadpo.errors import ConfigError

__all__ = ["PeopleFiles", "part_of"]


@dataclass(frozen=True)
class PeopleFiles:
    """Files of people's judgements.

    Attributes:
        pandalm: PandaLM's test set.
        llmbar: LLMBar's files, each a part of its own; their names tell the parts apart.
    """

    pandalm: str | None = None
    llmbar: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.pandalm is None and not self.llmbar:
            raise ConfigError("people: no files, expected pandalm: FILE, llmbar: [FILE, ...] or both")
        if double := [name for name, times in Counter(map(part_of, self.paths)).items() if times > 1]:
            raise ConfigError(f"people: two files are called {double[0]}, expected a name for each")

    @property
    def paths(self) -> list[str]:
        """All files, PandaLM's first."""
        return [path for path in (self.pandalm, *self.llmbar) if path is not None]


def part_of(path: str) -> str:
    """What a file's part of a set is called: its name without the ending."""
    return Path(path).stem
