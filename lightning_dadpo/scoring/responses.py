"""The stage `dadpo score-responses`: what the teacher thinks of responses, for a pairing rule to choose by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_dadpo.data.artifacts import finished, read_manifest
from lightning_dadpo.data.batching import collate_responses, response_tokens
from lightning_dadpo.data.plan import budgeted_batches
from lightning_dadpo.data.ranks import ranks_here, take_device
from lightning_dadpo.data.row_store import RowStore, column
from lightning_dadpo.data.rows import ResponseRow, ResponseScoreRow, read_rows, response_id
from lightning_dadpo.data.shards import SharedDraft, share, shared_draft
from lightning_dadpo.errors import AuditError, ConfigError, DataError
from lightning_dadpo.models.loading import autocast, load_frozen, load_tokenizer, model_digest
from lightning_dadpo.models.log_probs import check_trunk_and_head, describe_backend, model_log_probs
from lightning_dadpo.models.numerics import default_device, default_tokens_per_batch, inference_precision
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.scoring.audit import BFLOAT16_NATS_A_ROOT_TOKEN, Tolerance

__all__ = ["score_responses"]

ROWS = "rows.jsonl"
AUDITED = 8


def score_responses(
    model: ModelSpec,
    responses: str,
    out: str,
    tokens_per_batch: int | None = None,
    precision: Precision | None = None,
) -> Path:
    """Score every response once with a frozen model, for `dadpo pair --rule best_and_worst`.

    Shared by several processes and resumed after a kill as `dadpo score` is. A model's own responses need no scores:
    its sampler noted them.

    Args:
        model: the teacher; it reads the ids that were sampled, so it shares their tokenizer.
        responses: a responses artefact.
        out: folder to make; complete or absent. All processes must see it.
        tokens_per_batch: tokens of a forward pass, by default what suits this machine.
        precision: number format; by default what this machine is fast in.

    Raises:
        AuditError: scores read back from disk differ from the model's, or from what its sampler saw.
        ConfigError, DataError, ArtifactError: see the message.
    """
    ranks = ranks_here()
    take_device(ranks)
    device = default_device()
    budget = default_tokens_per_batch(device) if tokens_per_batch is None else tokens_per_batch
    if budget < 1:
        raise ConfigError(f"tokens_per_batch {budget}: expected at least 1")
    precision = precision or inference_precision()
    manifest, digest = read_manifest(responses, "responses"), model_digest(model)
    made_from = {
        "model": digest,
        "responses": manifest.files[ROWS],
        "backend": describe_backend(model, precision, device),
        "tokens_per_batch": budget,
    }
    if finished(out, "response_scores", made_from):
        return Path(out)
    rows = _different(Path(responses) / ROWS)
    _check_reads_the_same_text(load_tokenizer(model), model.path, rows)
    loaded = load_frozen(model, precision, device)
    with autocast(precision, device):
        check_trunk_and_head(loaded, model.path)
    own = manifest.made_from["model"] == digest
    with shared_draft(out, "response_scores", made_from, ranks) as work, autocast(precision, device):
        _score_all(work, loaded, rows, budget, device)
        if work.leads:
            work.draft.counts = {"responses": len(rows), "tokens": sum(len(row.token_ids) for row in rows)}
            work.draft.results["audit"] = _audit(work.draft.path, loaded, rows, device, precision == "32-true", own)
    return Path(out)


def _different(path: Path) -> RowStore[ResponseRow]:
    """The responses that hold a token, each once: of several candidates two may be the same."""
    seen: set[str] = set()

    def wanted(row: ResponseRow) -> bool:
        name = response_id(row)
        new = bool(row.token_ids) and name not in seen
        seen.add(name)
        return new

    rows = RowStore(path, ResponseRow, [response_tokens], wanted)
    if not rows:
        raise DataError(f"{path}: no response to score")
    return rows


def _check_reads_the_same_text(tokenizer: Any, name: str, rows: Sequence[ResponseRow]) -> None:
    """Refuse a model to which these token ids are other words: its scores would be finite and mean nothing."""
    some = _looked_at(rows, 32)
    other = [row for row in some if tokenizer.decode(row.token_ids, skip_special_tokens=True) != row.text]
    if 2 * len(other) > len(some):
        raise DataError(
            f"model {name!r}: its tokenizer reads the ids of a response to prompt {other[0].prompt_id!r} as other text "
            "than theirs; expected a model with the tokenizer of the one that sampled"
        )


def _looked_at(rows: Sequence[ResponseRow], count: int) -> list[ResponseRow]:
    """The cheapest, the dearest and random others."""
    costs = column(rows, response_tokens)
    ordered = sorted(range(len(rows)), key=lambda index: costs[index])
    if len(ordered) > count:
        ordered = [ordered[0], ordered[-1], *random.Random(0).sample(ordered[1:-1], count - 2)]
    return [rows[index] for index in ordered]


@torch.no_grad()
def _log_probs(model: Any, rows: Sequence[ResponseRow], device: torch.device) -> Tensor:
    """What the model gives to each response, [responses] in nats, float64 on the CPU."""
    return model_log_probs(model, collate_responses(rows).to(device).sequences).total.double().cpu()


def _score_all(work: SharedDraft, model: Any, rows: RowStore[ResponseRow], budget: int, device: torch.device) -> None:
    """This rank's batches, each written before the next begins."""
    groups = budgeted_batches(column(rows, response_tokens), budget)
    names = [response_id(row) for row in rows]
    keys = [[names[index] for index in group] for group in groups]
    with share(work, keys, ResponseScoreRow, _key, "scoring (responses)") as own:
        for number in own:
            batch = rows.take(groups[number])
            own.write(number, _rows(batch, _log_probs(model, batch, device).tolist()))
            own.advance(len(batch))


def _key(row: ResponseScoreRow) -> str:
    return row.response_id


def _rows(rows: list[ResponseRow], nats: list[float]) -> list[ResponseScoreRow]:
    for row, value in zip(rows, nats, strict=True):
        if not isfinite(value):
            raise AuditError(f"response to prompt {row.prompt_id!r}: the model's log-prob is not finite")
    return [
        ResponseScoreRow(response_id(row), value, len(row.token_ids)) for row, value in zip(rows, nats, strict=True)
    ]


def _audit(
    folder: Path, model: Any, rows: Sequence[ResponseRow], device: torch.device, exact: bool, own: bool
) -> dict[str, Any]:
    """Some rows again, each alone in its batch, and all of them against the sampler where this model sampled them.

    Raises:
        AuditError: naming the prompt and both numbers.
    """
    stored = {row.response_id: row.log_prob for row in read_rows(folder / ROWS, ResponseScoreRow)}
    some = _looked_at(rows, AUDITED)
    alone = torch.cat([_log_probs(model, [row], device) for row in some])
    tolerance = Tolerance(absolute=1e-4)
    if not exact:  # four times what another company in the batch changes (METHOD, consequence 3)
        tolerance = Tolerance(absolute=4 * float((alone - _log_probs(model, some, device)).abs().max()))
    for row, found in zip(some, alone.tolist(), strict=True):
        _compare("scored again alone", row, stored[response_id(row)], found, tolerance)
    seen = [row for row in rows if own and row.log_prob is not None]
    as_sampled = tolerance if exact else replace(tolerance, per_root_token=BFLOAT16_NATS_A_ROOT_TOKEN)
    for row in seen:
        assert row.log_prob is not None
        _compare("against its sampler", row, stored[response_id(row)], row.log_prob, as_sampled)
    print(f"audit: {len(some)} responses scored again alone, {len(seen)} against their sampler: agree")
    return {"tolerance": asdict(tolerance), "rows": len(some), "samples": len(seen)}


def _compare(how: str, row: ResponseRow, stored: float, found: float, tolerance: Tolerance) -> None:
    if bool(tolerance.exceeded(torch.tensor(stored), torch.tensor(found), len(row.token_ids))):
        raise AuditError(
            f"audit of response scores, {how}: prompt {row.prompt_id!r}, candidate {row.candidate}: "
            f"{stored:.4f} nats stored, {found:.4f} nats found"
        )
