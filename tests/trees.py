"""Between padded rows and token trees: the same sequences for the readable kernel and for the packed one."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_dadpo.data.packing import pack
from lightning_dadpo.types import PackedBatch, SequenceBatch

__all__ = ["rows_of", "trees_of", "sequences_of", "history"]


def rows_of(batch: SequenceBatch) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each padded row."""
    lengths = zip(batch.input_ids.tolist(), batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True)
    return [(ids[:prompt], ids[prompt:length]) for ids, prompt, length in lengths]


def trees_of(batch: SequenceBatch, responses: int = 1) -> PackedBatch:
    """The rows as trees of so many responses, in the rows' own order: all first responses, then all second ones."""
    rows = rows_of(batch)
    prompts = len(rows) // responses
    groups = [rows[prompt::prompts] for prompt in range(prompts)]
    for group in groups:
        assert all(prompt == group[0][0] for prompt, _ in group)
    return pack([group[0][0] for group in groups], [[response for _, response in group] for group in groups])


def sequences_of(batch: PackedBatch) -> list[list[int]]:
    """The ids of every sequence, read back from the trees alone: what its branch shows, and its last token.

    The last token is no input; it is the target of the sequence's last prediction.
    """
    found: dict[int, list[int]] = {}
    start = 0
    for tree, (prefix, *branches) in enumerate(batch.shapes):
        end = start + prefix
        for number, length in enumerate(branches):
            ids = batch.token_ids[start : start + prefix].tolist() + batch.token_ids[end : end + length].tolist()
            sequence = number * len(batch.shapes) + tree
            found[sequence] = [*ids, last_target(batch, sequence)]
            end += length
        start = end
    return [found[sequence] for sequence in sorted(found)]


def last_target(batch: PackedBatch, sequence: int) -> int:
    """The target that stands furthest back in the sequence."""
    terms: Sequence[int] = batch.terms[batch.owners == sequence].tolist()
    last = max(terms, key=lambda term: int(batch.position_ids[batch.predicted_by[term]]))
    return int(batch.targets[last])


def parents_of(batch: PackedBatch) -> list[int | None]:
    """Which token stands before each in its own sequence, by the shapes alone."""
    parents: list[int | None] = []
    for prefix, *branches in batch.shapes:
        start = len(parents)
        parents += [None, *range(start, start + prefix - 1)]
        for branch in branches:
            here = len(parents)
            parents += [start + prefix - 1, *range(here, here + branch - 1)][:branch]
    return parents


def history(batch: PackedBatch, index: int) -> list[int]:
    """The ids from a sequence's first token up to this one, found by walking up the tree."""
    parents, found = parents_of(batch), []
    at: int | None = index
    while at is not None:
        found.append(int(batch.token_ids[at]))
        at = parents[at]
    return found[::-1]
