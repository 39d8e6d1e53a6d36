"""Attention over token trees, as transformers' models call it: one forward pass over packed tokens.

Linear layers, norms and the head see the packed tokens, none of them padding. Only here are they laid out as what
they are, stems with trees and prefixes with branches, of which neither see each other:

- `sdpa`: every stem and every tree in a row of its own, padded to the longest, under an explicit mask; a tree's row
  sees a copy of its stem's keys and values. Runs everywhere.
- `varlen`: every branch a sequence of its own behind a copy of the keys and values of its stem and its prefix, nothing
  padded. Needs a CUDA GPU and 16-bit numbers.

Models are loaded with the attention implementation `token_trees`, registered with transformers' `AttentionInterface`.
Without a packed batch (sampling, other callers) it is transformers' own SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, islice
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

__all__ = [
    "TOKEN_TREES", "MaskedRows", "VariableLengths", "masked_rows", "variable_lengths", "tree_attention",
    "refuse_by_config",
]  # fmt: skip

TOKEN_TREES = "token_trees"


@dataclass(frozen=True)
class _Piece:
    """A stem, or a tree behind its stem, where they stand in the packed tokens.

    Attributes:
        stem: first token of the stem that a tree goes on from, and its tokens; a stem itself goes on from nothing.
        start: first token.
        shape: tokens of the prefix, and of each branch; a stem has none.
    """

    stem: tuple[int, int]
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(self.shape)


def _pieces(batch: PackedBatch) -> list[_Piece]:
    """Stems with tokens, and trees, in the packed order."""
    found: list[_Piece] = []
    shapes, start = iter(batch.shapes), 0
    for size, trees in batch.stems:
        stem = (start, size)
        if size:
            found.append(_Piece((start, 0), start, (size,)))
            start += size
        for shape in islice(shapes, trees):
            found.append(_Piece(stem, start, shape))
            start += sum(shape)
    return found


def _taken(part: Tensor, tokens: Tensor) -> Tensor:
    """Keys or values of these tokens, a token as often as it is named; its gradients are summed in float32 or wider.

    A stem's token gets one from every tree behind it: in bfloat16, a sum of equal addends stops at 256 of them.
    """
    return part.to(torch.promote_types(part.dtype, torch.float32))[tokens].to(part.dtype)


@dataclass(frozen=True)
class RowGroup:
    """All stems, or all trees, as rows padded to the largest, under a mask.

    Attributes:
        rows: [rows, longest] token of each slot. Padding repeats a row's last token: it stands behind every real
            one, so nothing real looks at it.
        keys: [rows, longest stem + longest] token of each key: what a row goes on from, and then itself.
        mask: [rows, 1, longest, longest stem + longest], added to the scores: 0 where a query (third) sees a key
            (fourth), -inf elsewhere. Made once for all layers in what attention runs in; from booleans, or from
            another format, one would be made anew in every layer, and kept for the backward pass.
    """

    rows: Tensor
    keys: Tensor
    mask: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """Attention output [slots, heads, width], row after row."""
        query = query[self.rows].transpose(1, 2)
        key, value = (_taken(part, self.keys).transpose(1, 2) for part in (key, value))
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            self.mask.to(value.dtype),  # autocast's, where query and key are still in float32
            dropout,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return out.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class MaskedRows:
    """Stems and trees as rows of their own. A long stem does not make the rows of short trees longer.

    Attributes:
        groups: the stems, where there are some, and the trees.
        slots: [tokens] slot of each token in the groups' rows, one group behind the other.
    """

    groups: tuple[RowGroup, ...]
    slots: Tensor

    def to(self, dtype: torch.dtype) -> MaskedRows:
        """With masks in the format that attention runs in."""
        groups = (replace(group, mask=group.mask.to(dtype)) for group in self.groups)
        return MaskedRows(tuple(groups), self.slots)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
        """Attention output [tokens, heads, width] for query, key and value of that shape, each with its own heads."""
        return torch.cat([group.attend(query, key, value, dropout, scaling) for group in self.groups])[self.slots]


def masked_rows(batch: PackedBatch) -> MaskedRows:
    """The layout for SDPA: a token sees what stands before it in its own branch, the prefix, and the stem."""
    pieces, device = _pieces(batch), batch.token_ids.device
    stems, trees = ([one for one in pieces if (len(one.shape) == 1) == stem] for stem in (True, False))
    groups, slots, before = [], torch.empty(batch.num_tokens, dtype=torch.long), 0
    for group in (stems, trees) if stems else (trees,):
        sizes, starts = torch.tensor([one.size for one in group]), torch.tensor([one.start for one in group])
        slot = torch.arange(int(sizes.max()))
        rows = starts[:, None] + torch.minimum(slot[None, :], sizes[:, None] - 1)
        real = (slot[None, :] < sizes[:, None]).flatten()
        slots[rows.flatten()[real]] = before + real.nonzero().squeeze(-1)
        before += len(real)
        stem_keys, stem_visible = _stems_of(group)
        stem_visible = stem_visible.to(device)[:, None, :].expand(-1, len(slot), -1)
        visible = torch.cat([stem_visible, _visible(group, slot, device)], dim=-1)
        mask = torch.zeros(visible.shape, device=device).masked_fill_(~visible, float("-inf"))[:, None]
        groups.append(RowGroup(rows.to(device), torch.cat([stem_keys, rows], dim=1).to(device), mask))
    return MaskedRows(tuple(groups), slots.to(device))


def _stems_of(group: list[_Piece]) -> tuple[Tensor, Tensor]:
    """What each row goes on from, padded to the longest: tokens [rows, stem], and which of these are real."""
    stems = torch.tensor([piece.stem for piece in group])
    slot = torch.arange(int(stems[:, 1].max()))
    return stems[:, :1] + torch.minimum(slot, (stems[:, 1:] - 1).clamp_min(0)), slot < stems[:, 1:]


def _visible(group: list[_Piece], slot: Tensor, device: torch.device) -> Tensor:
    """Whether a query sees a key of its own row: [rows, slots, slots]."""
    ends = torch.tensor([list(accumulate(piece.shape)) for piece in group])
    branch = (slot[None, :, None] >= ends[:, None, :-1]).sum(dim=-1).to(device)
    slot = slot.to(device)
    causal = slot[None, None, :] <= slot[None, :, None]
    return causal & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))


@dataclass(frozen=True)
class VariableLengths:
    """Branches as sequences behind their stems and prefixes, without padding.

    The queries of a stem are itself; those of a tree its prefix with its first branch, then every other branch alone:
    the packed order. The keys of each are its whole sequence, so a stem's are taken once for every branch of its trees,
    and a prefix's once for every branch. Causal from the end: the last query of a piece sees all of its keys.

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
            _taken(key, self.keys),
            _taken(value, self.keys),
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
    for piece in _pieces(batch):
        first, stem = piece.stem
        prefix, *branches = piece.shape
        own = piece.start + prefix
        for number, branch in enumerate(branches or [0]):
            if number == 0 or branch:  # the first part holds the prefix's queries, also where its branch has none
                queries.append(branch if number else prefix + branch)
                lengths.append(stem + prefix + branch)
                keys += [*range(first, first + stem), *range(piece.start, piece.start + prefix)]
                keys += range(own, own + branch)
            own += branch
    device = batch.token_ids.device
    return VariableLengths(
        keys=torch.tensor(keys, device=device),
        query_starts=torch.tensor([0, *accumulate(queries)], dtype=torch.int32, device=device),
        key_starts=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
        longest_query=max(queries),
        longest_key=max(lengths),
    )


Layout = MaskedRows | VariableLengths
UNSUPPORTED = ("softcap", "s_aux", "position_bias", "sliding_window")
"""What some models hand to their attention function, and is not done here."""

UNSTEADY_ROPES = ("dynamic", "longrope")
"""Kinds of RoPE that transformers scales anew by the largest position of every call."""


def refuse_by_config(config: Any, name: str) -> None:
    """Refuse a model whose attention packed batches would compute wrongly, where only its config tells.

    - Some layers see a part of what stands before a token. Not every model says so to its attention function: some
      leave windows and chunks to transformers' mask, which packed tokens pass by, and no probe of a few tokens reaches
      as far as a window.
    - RoPE takes its frequencies from the largest position of the whole call, so that a long neighbour in the batch
      changes a response's log-prob.

    Args:
        config: the model's.
        name: what the error calls the model.

    Raises:
        ConfigError: naming the model and what it uses.
    """
    config = config.get_text_config()
    found = [*_limits(config), *_unsteady_ropes(config)]
    if found:
        raise _unsupported(f"model {name!r}", found[0])


def _limits(config: Any) -> list[str]:
    layers = getattr(config, "layer_types", None)
    if layers is None:
        return ["sliding_window"] if getattr(config, "sliding_window", None) else []
    return sorted(set(layers) - {"full_attention"})


def _unsteady_ropes(config: Any) -> list[str]:
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = [rope.get("rope_type", rope.get("type")) for rope in (ropes, *ropes.values()) if isinstance(rope, dict)]
    return [f"{kind} RoPE (its frequencies follow the longest row)" for kind in kinds if kind in UNSTEADY_ROPES]


def _unsupported(model: str, what: str) -> ConfigError:
    return ConfigError(f"{model}: its attention uses {what}, which packed batches do not support yet")


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
    unknown = [name for name in UNSUPPORTED if arguments.get(name) is not None]
    if unknown:
        raise _unsupported("the model", unknown[0])
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    return token_trees.attend(query, key, value, dropout, scaling)[None], None


AttentionInterface.register(TOKEN_TREES, tree_attention)
AttentionMaskInterface.register(TOKEN_TREES, sdpa_mask)
