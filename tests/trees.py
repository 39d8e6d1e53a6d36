"""Between padded rows and token trees: the same sequences for the readable kernel and for the packed one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lightning_dadpo.data.packing import pack
from lightning_dadpo.types import PackedBatch, SequenceBatch

__all__ = ["rows_of", "trees_of", "sequences_of", "history", "parents_of", "places_of"]


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


def places_of(batch: PackedBatch) -> list[tuple[list[int], int, tuple[int, ...]]]:
    """Of each tree the tokens of its stem, its first token and its shape, by the sizes alone."""
    found, start, shapes = [], 0, iter(batch.shapes)
    for size, trees in batch.stems:
        stem = list(range(start, start + size))
        start += size
        for _ in range(trees):
            shape = next(shapes)
            found.append((stem, start, shape))
            start += sum(shape)
    assert next(shapes, None) is None
    assert start == len(batch.token_ids)
    return found


def sequences_of(batch: PackedBatch) -> list[list[int]]:
    """The ids of every sequence, read back from the trees alone: what its branch shows, and its last token.

    The last token is no input; it is the target of the sequence's last prediction. Which sequences a tree holds is
    read from what its tokens predict.
    """
    found: dict[int, list[int]] = {}
    by, owners = batch.predicted_by[batch.terms], batch.owners
    for stem, start, (prefix, *branches) in places_of(batch):
        inside = (by >= start) & (by < start + prefix + sum(branches))
        own = sorted(set(owners[inside].tolist()))
        assert len(own) == len(branches)
        end = start + prefix
        for sequence, length in zip(own, branches, strict=True):
            places = [*stem, *range(start, start + prefix), *range(end, end + length)]
            assert sequence not in found
            found[sequence] = [*batch.token_ids[places].tolist(), last_target(batch, sequence)]
            end += length
    return [found[sequence] for sequence in sorted(found)]


def last_target(batch: PackedBatch, sequence: int) -> int:
    """The target that stands furthest back in the sequence."""
    terms: Sequence[int] = batch.terms[batch.owners == sequence].tolist()
    last = max(terms, key=lambda term: int(batch.position_ids[batch.predicted_by[term]]))
    return int(batch.targets[last])


def parents_of(batch: PackedBatch) -> list[int | None]:
    """Which token stands before each in its own sequence, by the sizes alone."""
    parents: list[int | None] = [None] * batch.num_tokens
    for stem, start, (prefix, *branches) in places_of(batch):
        for place in stem[1:]:
            parents[place] = place - 1
        chain = [*stem[-1:], *range(start, start + prefix)]
        for before, place in pairwise(chain):
            parents[place] = before
        here = start + prefix
        for branch in branches:
            for before, place in pairwise([start + prefix - 1, *range(here, here + branch)]):
                parents[place] = before
            here += branch
    return parents


def history(batch: PackedBatch, index: int) -> list[int]:
    """The ids from a sequence's first token up to this one, found by walking up the tree."""
    parents, found = parents_of(batch), []
    at: int | None = index
    while at is not None:
        found.append(int(batch.token_ids[at]))
        at = parents[at]
    return found[::-1]
