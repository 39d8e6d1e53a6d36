"""From rows of ids to right-padded batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_dadpo.data.rows import PairRow, ResponseRow, content_digest
from lightning_dadpo.types import PairBatch, ResponseBatch, SequenceBatch

__all__ = ["collate_sequences", "collate_pairs", "collate_responses", "pair_length", "response_length"]

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
    """A micro-batch of pairs: all chosen rows, then all rejected rows."""
    prompts = [pair.prompt_token_ids for pair in pairs] * 2
    responses = [pair.chosen_token_ids for pair in pairs] + [pair.rejected_token_ids for pair in pairs]
    return PairBatch(
        pair_ids=tuple(pair.pair_id for pair in pairs),
        sequences=collate_sequences(prompts, responses),
        weights=torch.tensor(weights if weights is not None else [1.0] * len(pairs), dtype=torch.float32),
        pairs_in_step=len(pairs) if pairs_in_step is None else pairs_in_step,
        real_tokens=sum(map(len, prompts)) + sum(map(len, responses)),
    )


def collate_responses(
    rows: Sequence[ResponseRow], weights: Sequence[float] | None = None, tokens_in_step: int | None = None
) -> ResponseBatch:
    """A micro-batch for supervised fine-tuning."""
    total = sum(len(row.token_ids) for row in rows)
    return ResponseBatch(
        response_ids=tuple(content_digest(row.prompt_token_ids, row.token_ids) for row in rows),
        sequences=collate_sequences([row.prompt_token_ids for row in rows], [row.token_ids for row in rows]),
        weights=torch.tensor(weights if weights is not None else [1.0] * len(rows), dtype=torch.float32),
        tokens_in_step=total if tokens_in_step is None else tokens_in_step,
        real_tokens=total + sum(len(row.prompt_token_ids) for row in rows),
    )


def pair_length(pair: PairRow) -> int:
    """Tokens of the pair's longer row: what decides its padding."""
    return len(pair.prompt_token_ids) + max(len(pair.chosen_token_ids), len(pair.rejected_token_ids))


def response_length(row: ResponseRow) -> int:
    """Tokens of prompt and response."""
    return len(row.prompt_token_ids) + len(row.token_ids)
