"""Floating-point operations counted from a config: what each way of training has to multiply, before measuring it.

Matrix products of linear layers alone; attention scores, norms and the optimizer are not counted. A product with an
[in, out] matrix costs 2 x in x out a token forward and twice that backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.throughput.workload import Pair

__all__ = ["Shape", "STUDENT", "TEACHER", "SMALL", "TINY", "floor_flops", "Cost", "padded_tokens"]

FORWARD, TRAINING, RECOMPUTED = 2, 6, 8
"""Operations a token and parameter: forward alone; forward and backward; the same with the forward run twice."""


@dataclass(frozen=True)
class Shape:
    """A Llama of this shape, head tied to the embedding."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int = 49_152

    @property
    def linear_layers(self) -> list[tuple[int, int]]:
        """(in, out) of every linear layer of one block."""
        keys = self.hidden // self.heads * self.key_value_heads
        attention = [(self.hidden, self.hidden), (self.hidden, keys), (self.hidden, keys), (self.hidden, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def trunk(self) -> int:
        """Parameters of all linear layers of the trunk; the embedding is looked up, not multiplied."""
        return self.layers * sum(rows * columns for rows, columns in self.linear_layers)

    @property
    def head(self) -> int:
        """Parameters of the vocabulary head."""
        return self.hidden * self.vocabulary


STUDENT = Shape(hidden=576, intermediate=1536, layers=30, heads=9, key_value_heads=3)
"""SmolLM2-135M's."""
TEACHER = Shape(hidden=960, intermediate=2560, layers=32, heads=15, key_value_heads=5)
"""SmolLM2-360M's."""
SMALL = Shape(hidden=576, intermediate=1536, layers=4, heads=9, key_value_heads=3, vocabulary=4096)
"""For curves whose form alone counts."""
TINY = Shape(hidden=64, intermediate=128, layers=2, heads=4, key_value_heads=2, vocabulary=512)
"""For trying the benchmark out."""


def floor_flops(student: Shape, pairs: Sequence[Pair]) -> int:
    """6N(P + 2R) for the trunk, 6 x V x d at response positions for the head, frozen scores from the cache."""
    tokens, responses = sum(pair.tokens for pair in pairs), sum(pair.response_tokens for pair in pairs)
    return TRAINING * (student.trunk * tokens + student.head * responses)


@dataclass(frozen=True)
class Cost:
    """Positions that a model computes for a step, and how often.

    Attributes:
        trunk: positions of the trunk.
        head: positions of the head.
        trunk_operations, head_operations: a position and parameter.
    """

    trunk: int
    head: int
    trunk_operations: int = TRAINING
    head_operations: int = TRAINING

    def flops(self, shape: Shape) -> int:
        """Operations of the step."""
        return self.trunk_operations * self.trunk * shape.trunk + self.head_operations * self.head * shape.head


def padded_tokens(pairs: Sequence[Pair], micro_batch: int) -> int:
    """Positions of right-padded rows, two a pair, `micro_batch` pairs at a time in the given order."""
    total = 0
    for start in range(0, len(pairs), micro_batch):
        part = pairs[start : start + micro_batch]
        longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in part)
        total += 2 * len(part) * longest
    return total
