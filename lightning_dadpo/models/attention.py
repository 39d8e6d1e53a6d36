"""Attention over token trees, as transformers' models call it: one forward pass over packed tokens.

Linear layers, norms and the head see the packed tokens, none of them padding. Only here are they laid out as what
they are, prefixes with branches that do not see each other:

- `sdpa`: every tree in a row of its own, padded to the longest, under an explicit mask. Runs everywhere.
- `varlen`: every branch a sequence of its own behind a copy of its prefix's keys and values, nothing padded. Needs a
  CUDA GPU and 16-bit numbers.

Models are loaded with the attention implementation `token_trees`, registered with transformers' `AttentionInterface`.
Without a packed batch (sampling, other callers) it is transformers' own SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.types import PackedBatch

__all__ = ["TOKEN_TREES", "MaskedRows", "VariableLengths", "masked_rows", "variable_lengths", "tree_attention"]

TOKEN_TREES = "token_trees"


@dataclass(frozen=True)
class MaskedRows:
    """Trees as rows of their own, padded to the largest, under a mask.

    Attributes:
        rows: [trees, longest] token of each slot. Padding repeats a tree's last token: it stands behind every real
            one, so nothing real looks at it.
        slots: [tokens] slot of each token in the flattened rows.
        mask: [trees, 1, longest, longest], added to the scores: 0 where a query (third) sees a key (fourth), -inf
            elsewhere. Made once for all layers; from booleans SDPA would make it anew in every one.
    """

    rows: Tensor
    slots: Tensor
    mask: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """Attention output [tokens, heads, width] for query, key and value of that shape, each with its own heads."""
        query, key, value = (part[self.rows].transpose(1, 2) for part in (query, key, value))
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            self.mask.to(query.dtype),
            dropout,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return out.transpose(1, 2).flatten(0, 1)[self.slots]


def masked_rows(batch: PackedBatch) -> MaskedRows:
    """The layout for SDPA: a token sees what stands before it in its own branch, and the prefix."""
    longest, device = batch.longest_tree, batch.token_ids.device
    sizes = torch.tensor([sum(shape) for shape in batch.shapes])
    slot = torch.arange(longest)
    real = slot[None, :] < sizes[:, None]
    rows = (sizes.cumsum(0) - sizes)[:, None] + torch.minimum(slot[None, :], sizes[:, None] - 1)
    ends = torch.tensor([list(accumulate(shape)) for shape in batch.shapes])
    branch = (slot[None, :, None] >= ends[:, None, :-1]).sum(dim=-1).to(device)
    before = slot.to(device)
    visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    visible &= before[None, None, :] <= before[None, :, None]
    mask = torch.zeros(visible.shape, device=device).masked_fill_(~visible, float("-inf"))
    return MaskedRows(rows.to(device), real.flatten().nonzero().squeeze(-1).to(device), mask[:, None])


@dataclass(frozen=True)
class VariableLengths:
    """Branches as sequences behind their prefixes, without padding.

    The queries of a tree are its prefix with its first branch, then every other branch alone: the packed order. The
    keys of each are its whole sequence, so the prefix's are taken once for every branch. Causal from the end: the
    last query of a piece sees all of its keys.

    Attributes:
        keys: [key tokens] token of each key.
        query_starts, key_starts: [pieces + 1] cumulated lengths, int32.
        longest_query, longest_key: tokens.
    """

    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """As `MaskedRows.attend`."""
        if dropout:
            raise ConfigError("attention: varlen cannot drop out; set `attention: sdpa` for this model")
        # under autocast, rotary embeddings leave query and key in float32; only this kernel's own callers see to that
        query, key = query.to(value.dtype), key.to(value.dtype)
        out = varlen_attn(
            query,
            key[self.keys],
            value[self.keys],
            self.query_starts,
            self.key_starts,
            self.longest_query,
            self.longest_key,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        assert isinstance(out, Tensor)
        return out


def variable_lengths(batch: PackedBatch) -> VariableLengths:
    """The layout for varlen attention."""
    keys: list[int] = []
    queries, lengths = [], []
    start = 0
    for prefix, *branches in batch.shapes:
        own = start + prefix
        for number, branch in enumerate(branches):
            if number == 0 or branch:  # the first piece holds the prefix's queries, also where its branch has none
                queries.append(branch if number else prefix + branch)
                lengths.append(prefix + branch)
                keys += [*range(start, start + prefix), *range(own, own + branch)]
            own += branch
        start = own
    device = batch.token_ids.device
    return VariableLengths(
        keys=torch.tensor(keys, device=device),
        query_starts=torch.tensor([0, *accumulate(queries)], dtype=torch.int32, device=device),
        key_starts=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
        longest_query=max(queries),
        longest_key=max(lengths),
    )


Layout = MaskedRows | VariableLengths
UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""What some models add to their attention scores; sliding windows are looked at apart."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    token_trees: Layout | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer.

    Args:
        module: the attention layer.
        query, key, value: [batch, heads, tokens, width]; a batch of one where tokens are packed.
        attention_mask: transformers' own, for callers without packed tokens.
        dropout: probability, on attention weights.
        scaling: of the scores.
        token_trees: the layout of the packed batch; without it this is transformers' SDPA.
        **arguments: what else transformers hands to attention functions.

    Returns:
        [batch, tokens, heads, width], and no weights.

    Raises:
        ConfigError: the layer does something to its scores that is not done here.
    """
    if token_trees is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **arguments
        )
    unknown = [name for name in (*UNSUPPORTED, "sliding_window") if arguments.get(name) is not None]
    if unknown:
        raise ConfigError(f"the model's attention uses {unknown[0]}, which packed batches do not support yet")
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    return token_trees.attend(query, key, value, dropout, scaling)[None], None


AttentionInterface.register(TOKEN_TREES, tree_attention)
AttentionMaskInterface.register(TOKEN_TREES, sdpa_mask)
