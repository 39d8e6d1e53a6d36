"""The rows that are drawn at the moment: their tokens, their random numbers and their keys and values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

__all__ = ["Running"]


class Running:
    """Rows between two tokens. Every row's last token stands in the last column, whatever its length.

    The columns in front of a row's first token are masked, and positions are counted from that token (trap B4). A
    row's columns hang together, so that also a sliding window over columns sees what it would see alone.

    Args:
        prompts: which prompt each row answers.
        lengths: [rows] tokens of each row whose keys and values are in the cache.
        logits: [rows, vocabulary] raw, float32, behind the latest token.
        cache: keys and values, [rows, heads, columns, width] in every layer.
    """

    def __init__(self, prompts: list[int], lengths: Tensor, logits: Tensor, cache: DynamicCache) -> None:
        self.prompts, self.lengths, self.logits, self.cache = prompts, lengths, logits, cache

    def __len__(self) -> int:
        return len(self.prompts)

    def advance(self, model: Any, drawn: Tensor) -> None:
        """Compute the logits behind the tokens just drawn, [rows]."""
        columns = torch.arange(self.cache.get_seq_length() + 1, device=drawn.device)
        self.lengths = self.lengths + 1
        output = model(
            input_ids=drawn[:, None],
            attention_mask=columns >= (len(columns) - self.lengths)[:, None],
            position_ids=(self.lengths - 1)[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1].float()

    def keep(self, rows: list[int]) -> None:
        """Drop every row but these; their logits are used up."""
        if len(rows) < len(self):
            chosen = torch.tensor(rows, dtype=torch.long, device=self.lengths.device)
            self.prompts, self.lengths = [self.prompts[row] for row in rows], self.lengths[chosen]
            self.logits = self.logits[:0]
            self.cache.batch_select_indices(chosen)

    def join(self, others: Running) -> None:
        """Take in the rows of another one, which is used up; columns that no row needs any more are left behind."""
        self.prompts = self.prompts + others.prompts
        self.lengths = torch.cat([self.lengths, others.lengths])
        self.logits = torch.cat([self.logits, others.logits])
        columns = int(self.lengths.max())
        for mine, theirs in zip(self.cache.layers, others.cache.layers, strict=True):
            mine.keys = torch.cat([_fitted(mine.keys, columns), _fitted(theirs.keys, columns)])
            mine.values = torch.cat([_fitted(mine.values, columns), _fitted(theirs.values, columns)])


def _fitted(states: Tensor, columns: int) -> Tensor:
    """The last `columns` of [rows, heads, columns, width], with zeros in front where there are fewer."""
    states = states[:, :, -columns:]
    return F.pad(states, (0, 0, columns - states.shape[2], 0))
