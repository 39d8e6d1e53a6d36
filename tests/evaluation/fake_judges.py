"""Judges whose verdicts are known beforehand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.evaluation.judges import Comparison, Judge, Preference


class FakeJudge(Judge):
    """Notes what it was asked."""

    name = "fake"

    def __init__(self) -> None:
        self.calls: list[list[Comparison]] = []
        self._asked = 0

    def identity(self) -> dict[str, Any]:
        return {"judge": type(self).__name__}

    def cost(self, comparisons: Sequence[Comparison]) -> str:
        return f"{len(comparisons)} comparisons, free of charge"

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        self.calls.append(list(comparisons))
        self._asked = len(comparisons)
        return [self.preference(one) for one in comparisons]

    @abstractmethod
    def preference(self, comparison: Comparison) -> Preference:
        """Of one comparison."""

    def counts(self) -> dict[str, int]:
        return {"asked": self._asked, "unreadable": 0}


class LongerJudge(FakeJudge):
    name = "longer"

    def preference(self, comparison: Comparison) -> Preference:
        first, second = len(comparison.first), len(comparison.second)
        return "first" if first > second else "second" if second > first else "tie"


class FirstJudge(FakeJudge):
    """Biased to the position: whatever stands first is better."""

    name = "first"

    def preference(self, comparison: Comparison) -> Preference:
        return "first"


class RandomJudge(FakeJudge):
    """Decides by a coin for each comparison, the same one whenever it is asked."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"seed": self.seed}

    def preference(self, comparison: Comparison) -> Preference:
        drawn = int(content_digest(self.seed, comparison.comparison_id), 16)
        return ("first", "second", "tie")[int(np.random.default_rng(drawn).integers(3))]
