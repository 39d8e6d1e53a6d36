"""From rows of ids to batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_dadpo.data.packing import pack, tree_tokens
from lightning_dadpo.data.rows import PairRow, ResponseRow, content_digest
from lightning_dadpo.types import PairBatch, ResponseBatch, SequenceBatch

__all__ = ["collate_sequences", "collate_pairs", "collate_responses", "pair_tokens", "response_tokens"]

PADDING = 0
"""Any id will do: masks come from lengths, so padding is never read, also where a real token has this id."""


def collate_sequences(prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> SequenceBatch:
    """Prompt ids followed by response ids, a row each, padded on the right to the longest."""
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    return SequenceBatch(
        input_ids=torch.tensor([row + [PADDING] * (width - len(row)) for row in rows]),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        lengths=torch.tensor([len(row) for row in rows]),
    )


def collate_pairs(
    pairs: Sequence[PairRow], weights: Sequence[float] | None = None, pairs_in_step: int | None = None
) -> PairBatch:
    """A micro-batch of pairs: a tree each, the prompt and whatever else both responses begin with computed once."""
    weights = weights if weights is not None else [1.0] * len(pairs)
    return PairBatch(
        pair_ids=tuple(pair.pair_id for pair in pairs),
        sequences=pack([pair.prompt_token_ids for pair in pairs], [_responses(pair) for pair in pairs]),
        weights=torch.tensor(weights, dtype=torch.float32),
        pairs_in_step=len(pairs) if pairs_in_step is None else pairs_in_step,
        real_tokens=sum(
            2 * len(pair.prompt_token_ids) + len(pair.chosen_token_ids) + len(pair.rejected_token_ids)
            for pair, weight in zip(pairs, weights, strict=True)
            if weight
        ),
    )


def collate_responses(
    rows: Sequence[ResponseRow],
    weights: Sequence[float] | None = None,
    tokens_in_step: int | None = None,
    responses_in_step: int | None = None,
) -> ResponseBatch:
    """A micro-batch for supervised fine-tuning."""
    weights = weights if weights is not None else [1.0] * len(rows)
    counted = [row for row, weight in zip(rows, weights, strict=True) if weight]
    total = sum(len(row.token_ids) for row in counted)
    return ResponseBatch(
        response_ids=tuple(content_digest(row.prompt_token_ids, row.token_ids) for row in rows),
        sequences=pack([row.prompt_token_ids for row in rows], [[row.token_ids] for row in rows]),
        weights=torch.tensor(weights, dtype=torch.float32),
        tokens_in_step=total if tokens_in_step is None else tokens_in_step,
        responses_in_step=len(counted) if responses_in_step is None else responses_in_step,
        real_tokens=total + sum(len(row.prompt_token_ids) for row in counted),
        ids=tuple((row.prompt_token_ids, row.token_ids) for row in rows),
    )


def _responses(pair: PairRow) -> list[list[int]]:
    return [pair.chosen_token_ids, pair.rejected_token_ids]


def pair_tokens(pair: PairRow) -> int:
    """Tokens that the trunk computes for a pair: what it costs."""
    return tree_tokens(pair.prompt_token_ids, _responses(pair))


def response_tokens(row: ResponseRow) -> int:
    """Tokens that the trunk computes for a response."""
    return tree_tokens(row.prompt_token_ids, [row.token_ids])
