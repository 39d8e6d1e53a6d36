"""Time and memory at 1x, 4x and 16x, on a model of four layers: `python -m experiments.throughput.scaling ...`.

Sizes rise within one process, so its peak memory never falls: where the last figure is that of the first, memory does
not depend on the size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.throughput.flops import SMALL, TINY
from experiments.throughput.measure import seconds
from experiments.throughput.memory import peak, resident
from experiments.throughput.ours import Ours, Scoring
from experiments.throughput.setting import Setting, chunks, sizes_for
from experiments.throughput.workload import SHORT, Pair

__all__ = ["FACTORS", "stretched"]

FACTORS = (1, 4, 16)
PAIRS_IN_STEP = 8
STEPS = 4
"""Steps of the first point of the curve over pairs: with fewer no micro-batch would be full there."""


def stretched(pairs: Sequence[Pair], tokens: int) -> list[Pair]:
    """The same prompts with responses of a given length, their ids repeated as often as that takes."""

    def longer(ids: list[int]) -> list[int]:
        return (ids * (tokens // len(ids) + 1))[:tokens]

    return [Pair(pair.prompt, longer(pair.chosen), longer(pair.rejected)) for pair in pairs]


def _sizes(setting: Setting, kind: str) -> Iterable[list[Pair]]:
    number, tokens = setting.sizes.scaling
    everything = setting.sets[SHORT]
    for factor in FACTORS:
        if kind == "pairs":
            yield [everything[index % len(everything)] for index in range(STEPS * number * factor)]
        else:
            yield stretched(everything[:number], tokens * factor)


def main() -> None:
    """Every size of one curve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("pairs", "tokens"))
    parser.add_argument("--work", choices=("training", "scoring"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--quick", type=int)
    asked = parser.parse_args()
    small = TINY if asked.quick else SMALL
    sizes = replace(sizes_for(bool(asked.quick)), student=small, teacher=TINY)
    setting = Setting.make(sizes, asked.folder)
    points = list(_sizes(setting, asked.kind))
    base = resident()
    side: Any
    if asked.work == "training":
        side = Ours(setting, [pair for pairs in points for pair in pairs])
    else:
        side = Scoring(setting, setting.student, setting.precision)

    def work(pairs: Sequence[Pair]) -> None:
        if asked.work == "training":
            for part in chunks(pairs, PAIRS_IN_STEP):
                side.step(part)
        else:
            side.score(pairs)

    work(points[0])
    rows = []
    for factor, pairs in zip(FACTORS, points, strict=True):
        taken = seconds(lambda pairs=pairs: work(pairs))  # type: ignore[misc]
        tokens = sum(pair.tokens for pair in pairs)
        rows.append({"factor": factor, "tokens": tokens, "seconds": taken, "peak": peak() - base})
    print(json.dumps(rows))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
