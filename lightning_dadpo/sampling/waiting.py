"""The prompts that wait for a place, and how they are read: what many of them begin with is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lightning_dadpo.data.beginnings import Family, families
from lightning_dadpo.sampling.running import Running

__all__ = ["Waiting"]


def _by_prompt(prompt_ids: Sequence[list[int]]) -> list[Family]:
    """The families of different prompts, each prompt in its place as often as it stands there."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, ids in enumerate(prompt_ids):
        places.setdefault(tuple(ids), []).append(place)
    groups = list(places.values())
    found = families([prompt_ids[group[0]] for group in groups])
    return [Family([place for number in family.prompts for place in groups[number]], family.shared) for family in found]


class Waiting:
    """The prompts that were not begun yet.

    Args:
        model: in eval mode, on its device.
        prompt_ids: every prompt; none is empty. One that stands there several times is read once a batch.
    """

    def __init__(self, model: Any, prompt_ids: list[list[int]]) -> None:
        self.model, self.prompt_ids = model, prompt_ids
        self.device = next(model.parameters()).device
        self.families = _by_prompt(prompt_ids)
        self.beginning: DynamicCache | None = None

    def __len__(self) -> int:
        return sum(len(family.prompts) for family in self.families)

    def begin(self, places: int) -> Running:
        """Read up to so many prompts of one family, and have the logits of their first answer tokens."""
        family = self.families[0]
        if self.beginning is None:
            self.beginning = self._beginning(family)
        taken, family.prompts = family.prompts[:places], family.prompts[places:]
        running = self._read(taken, family.shared, self.beginning)
        if not family.prompts:
            del self.families[0]
            self.beginning = None
        return running

    def _beginning(self, family: Family) -> DynamicCache:
        """Keys and values of what the family shares, as one row."""
        cache = DynamicCache()
        if family.shared:
            ids = torch.tensor([self.prompt_ids[family.prompts[0]][: family.shared]], device=self.device)
            self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _read(self, prompts: list[int], shared: int, beginning: DynamicCache) -> Running:
        """What stands behind the beginning, padded behind; then every row is moved to end in the last column."""
        numbers: dict[tuple[int, ...], int] = {}
        asked = [numbers.setdefault(tuple(self.prompt_ids[prompt][shared:]), len(numbers)) for prompt in prompts]
        rest = [list(ids) for ids in numbers]
        longest = max(map(len, rest))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rest], device=self.device)
        tokens = torch.tensor([len(row) for row in rest], device=self.device)
        columns = torch.arange(shared + longest, device=self.device)
        lengths = tokens + shared
        cache = _copies(beginning, len(rest))
        last, place = torch.unique(tokens - 1, return_inverse=True)
        output = self.model(
            input_ids=ids,
            attention_mask=columns < lengths[:, None],
            position_ids=columns[shared:].expand(len(rest), -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        )
        logits = output.logits[torch.arange(len(rest), device=self.device), place].float()
        _move(cache, (columns - (len(columns) - lengths)[:, None]).clamp_min(0))
        if len(rest) < len(prompts):
            rows = torch.tensor(asked, device=self.device)
            lengths, logits = lengths[rows], logits[rows]
            cache.batch_select_indices(rows)
        return Running(prompts, lengths, logits, cache)


def _copies(cache: DynamicCache, rows: int) -> DynamicCache:
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    return DynamicCache([tuple(part.expand(rows, -1, -1, -1) for part in layer) for layer in layers])


def _move(cache: DynamicCache, source: Tensor) -> None:
    """Reorder every row's columns; `source` [rows, columns] says which column comes where."""
    for layer in cache.layers:
        layer.keys = layer.keys.take_along_dim(source[:, None, :, None], dim=2)
        layer.values = layer.values.take_along_dim(source[:, None, :, None], dim=2)
