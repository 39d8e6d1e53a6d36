"""The stage `dadpo score`: what one model gives to every pair, kept on disk."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from lightning_dadpo.data.artifacts import finished, read_manifest
from lightning_dadpo.data.batching import collate_pairs, pair_tokens
from lightning_dadpo.data.plan import budgeted_batches
from lightning_dadpo.data.ranks import ranks_here, take_device
from lightning_dadpo.data.row_store import RowStore, column
from lightning_dadpo.data.rows import PairRow, ScoreRow, read_rows
from lightning_dadpo.data.shards import SharedDraft, share, shared_draft
from lightning_dadpo.errors import AuditError, ConfigError
from lightning_dadpo.models.loading import autocast, load_frozen, model_digest
from lightning_dadpo.models.log_probs import check_trunk_and_head, describe_backend, describe_kernels
from lightning_dadpo.models.numerics import (
    default_device,
    default_tokens_per_batch,
    inference_precision,
    training_precision,
)
from lightning_dadpo.models.server_spec import ServerSpec, refuse_beside_a_server
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.scoring.audit import audit_live, audit_rows, audit_sampler
from lightning_dadpo.scoring.base import Scorer
from lightning_dadpo.scoring.live import AutocastScorer, LiveScorer
from lightning_dadpo.scoring.reading import Route
from lightning_dadpo.scoring.remote import score_on_server
from lightning_dadpo.scoring.reuse import known_scores
from lightning_dadpo.scoring.routes import rows_to_read
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.scoring.text_pairs import TextPairs
from lightning_dadpo.types import PairLogProbs

__all__ = ["score"]


def score(
    model: ModelSpec | None,
    pairs: str,
    out: str,
    anchor: str = "teacher",
    tokens_per_batch: int | None = None,
    precision: Precision | None = None,
    read: Route | None = None,
    tokenizer: ModelSpec | None = None,
    server: ServerSpec | None = None,
    known: list[str] | None = None,
) -> Path:
    """Score every pair once with a frozen model, and audit what was written before it counts as finished.

    A model with another tokenizer scores the same text: rendered by its own chat template, its own end of turn behind
    responses that were finished, one tokenisation of it. That is a lower bound on the text's probability, and not
    exactly the text that was sampled where ids do not survive decoding; both are counted in the manifest.

    Several processes, started by torchrun or srun, share the pairs: on several GPUs, `torchrun --nproc_per_node 8 -m
    lightning_dadpo score -c FILE.yaml`. A killed run goes on where it stopped, also with another number of processes,
    which changes nothing in the rows.

    Args:
        model: the anchor.
        pairs: a pairs artefact.
        out: folder to make; complete or absent. All processes must see it.
        anchor: its name. The reference is scored exactly as the policy trains; a teacher may be scored in
            whatever is fast here.
        tokens_per_batch: tokens of a forward pass, by default what suits this machine; pairs of like length share
            one, and a pair is never cut.
        precision: number format; by default the one that suits the anchor on this machine.
        read: ids for the very ids of the pairs, text for their text under the model's own tokenizer and template; by
            default ids where the two tokenizers are the same, and text where they differ.
        tokenizer: whose ids the pairs hold: the student. Needed where the text is read; elsewhere the pairs tell.
        server: where the anchor is served, in place of `model`: it is sent the text, in one process.
        known: scores artefacts of the same anchor; the pairs in them are taken over and not scored again.

    Raises:
        AuditError: scores read back from disk differ from the model's, or from what its sampler saw.
        ConfigError, DataError, ArtifactError: see the message.
    """
    if server is not None:
        refuse_beside_a_server(model=model, tokens_per_batch=tokens_per_batch, precision=precision, known=known)
        return score_on_server(server, pairs, out, anchor, tokenizer, read)
    if model is None:
        raise ConfigError("score: expected a model (--model.path FOLDER) or a server (--server.url URL)")
    ranks = ranks_here()
    take_device(ranks)
    device = default_device()
    budget = default_tokens_per_batch(device) if tokens_per_batch is None else tokens_per_batch
    if budget < 1:
        raise ConfigError(f"tokens_per_batch {budget}: expected at least 1")
    precision = precision or (training_precision() if anchor == "reference" else inference_precision())
    manifest = read_manifest(pairs, "pairs")
    digest = model_digest(model)
    made_from = {
        "anchor": anchor,
        "model": digest,
        "pairs": manifest.files["rows.jsonl"],
        "backend": describe_backend(model, precision, device),
        "tokens_per_batch": budget,
    }
    read = read or _route_taken(out)
    if read is not None and finished(out, "scores", made_from | {"read": read}):
        return Path(out)
    rows = rows_to_read(pairs, model, tokenizer, read, ranks.leads)
    made_from["read"] = "text" if isinstance(rows, TextPairs) else "ids"
    loaded = load_frozen(model, precision, device)
    with autocast(precision, device):
        check_trunk_and_head(loaded, model.path)
        if ranks.leads:
            print(f"{device.type}, {precision}, {describe_kernels(loaded)}, batches of at most {budget} tokens")
    scorer = AutocastScorer(LiveScorer(loaded), precision)
    sides = [side for side in ("chosen", "rejected") if manifest.made_from.get(f"{side}_model") == digest]
    taken = known_scores(known or [], made_from, [pair.pair_id for pair in rows], ranks.leads) if known else {}
    with shared_draft(out, "scores", made_from, ranks) as work:
        _score_all(work, scorer, rows, budget, device, taken)
        if work.leads:
            _count(work, rows, len(taken) if known else None)
            stored = ScoreTable(read_rows(work.draft.path / "rows.jsonl", ScoreRow), work.draft.path)
            work.draft.results["audit"] = _audit(anchor, stored, scorer, rows, sides, device, precision == "32-true")
    return Path(out)


def _count(work: SharedDraft, rows: RowStore[PairRow] | TextPairs, reused: int | None) -> None:
    """What the manifest says of the pairs; `reused` of them were scored before, where somebody named such scores."""
    work.draft.counts = {"pairs": len(rows)} | ({} if reused is None else {"reused": reused})
    if isinstance(rows, TextPairs):
        work.draft.counts |= {"left_out": rows.read - len(rows)}
        work.draft.results |= {"left_out": rows.left_out, "changed_ids": dict(rows.changed_ids)}


def _route_taken(out: str) -> Route | None:
    """How the scores that stand there already were made: the same model and pairs would choose the same again."""
    if not Path(out).exists():
        return None
    route: Route | None = read_manifest(out, "scores").made_from.get("read")
    return route


def _audit(
    anchor: str,
    stored: ScoreTable,
    scorer: Scorer,
    pairs: RowStore[PairRow],
    sides: list[str],
    device: torch.device,
    exact: bool,
) -> dict[str, Any]:
    """Hold what was written to the model and to its sampler; what was compared, for the manifest."""
    tolerance = audit_live(anchor, stored, scorer, pairs, device, exact)
    compared = audit_sampler(anchor, stored, pairs, sides, tolerance, exact)
    again = len(audit_rows(pairs))
    print(f"audit of {anchor}: {again} pairs scored again alone, {compared} samples against their sampler: agree")
    return {"tolerance": asdict(tolerance), "rows": again, "samples": compared}


def _score_all(
    work: SharedDraft,
    scorer: Scorer,
    pairs: RowStore[PairRow],
    budget: int,
    device: torch.device,
    taken: dict[str, ScoreRow],
) -> None:
    """This rank's batches, each written before the next begins: a kill loses one, and no more are in memory.

    The rows that are taken over from elsewhere are one more piece, behind the batches of the others.
    """
    names, costs = [pair.pair_id for pair in pairs], column(pairs, pair_tokens)
    new = [index for index, name in enumerate(names) if name not in taken]
    groups = [[new[at] for at in group] for group in budgeted_batches([costs[index] for index in new], budget)]
    keys = [[names[index] for index in group] for group in groups]
    with share(work, [*keys, list(taken)] if taken else keys, ScoreRow, _pair_id, "scoring (pairs)") as own:
        for number in own:
            if number == len(groups):
                own.write(number, taken.values())
                own.advance(len(taken))
                continue
            batch = pairs.take(groups[number])
            own.write(number, _rows(batch, scorer.score(collate_pairs(batch).to(device))))
            own.advance(len(batch))


def _pair_id(row: ScoreRow) -> str:
    return row.pair_id


def _rows(pairs: list[PairRow], scores: PairLogProbs) -> list[ScoreRow]:
    columns = (scores.chosen.total, scores.chosen.num_tokens, scores.rejected.total, scores.rejected.num_tokens)
    made = []
    for pair, *numbers in zip(pairs, *(values.tolist() for values in columns), strict=True):
        if not all(map(isfinite, numbers)):
            raise AuditError(f"pair {pair.pair_id} (prompt {pair.prompt_id}): the model's log-prob is not finite")
        made.append(ScoreRow(pair.pair_id, *numbers))
    return made
