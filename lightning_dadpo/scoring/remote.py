"""`dadpo score` with a teacher on a server.

It reads the same text under its own tokenizer and template (METHOD, consequence 6); `scoring.text_pairs` says which.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass

from lightning_dadpo.data.artifacts import finished, read_manifest
from lightning_dadpo.data.batching import pair_tokens
from lightning_dadpo.data.ranks import ranks_here
from lightning_dadpo.data.row_store import RowStore
from lightning_dadpo.data.rows import STRICT, PairRow, RowWriter, ScoreRow, read_rows
from lightning_dadpo.data.shards import ROWS, SharedDraft, share, shared_draft
from lightning_dadpo.errors import AuditError, ConfigError
from lightning_dadpo.models.completions import Answer, CompletionsServer, Question
from lightning_dadpo.models.loading import load_tokenizer
from lightning_dadpo.models.server_spec import ServerSpec, tokenizer_digest
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.audit import audit_live, audit_rows
from lightning_dadpo.scoring.probe import hold_to_probe, question_of, take_probe
from lightning_dadpo.scoring.reading import LeftOut, Reading, Route, read_response
from lightning_dadpo.scoring.spans import Misread, Vocabulary, response_log_probs
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.scoring.text_pairs import TextPairs
from lightning_dadpo.types import PairBatch, PairLogProbs, SequenceLogProbs

__all__ = ["score_on_server", "AnsweredRow"]

PROBE = "probe.json"
Sides = tuple[Reading | LeftOut, Reading | LeftOut]


@dataclass(frozen=True, config=STRICT)
class AnsweredRow:
    """What a server gave to a pair, or why there is nothing; without the last two fields it is a `ScoreRow`.

    Attributes:
        left_out: why this pair has no scores, in a few words; empty where it has. detail: both texts.
    """

    pair_id: str
    chosen_log_prob: float = 0.0
    chosen_num_tokens: int = 0
    rejected_log_prob: float = 0.0
    rejected_num_tokens: int = 0
    left_out: str = ""
    detail: str = ""


def score_on_server(
    server: ServerSpec, pairs: str, out: str, anchor: str, tokenizer: ModelSpec | None, read: Route | None = None
) -> Path:
    """Score every pair with a model on a server, and audit what was written before it counts as finished.

    One process with `server.concurrency` pairs under way. A killed run asks for what is missing, on whatever url
    serves the model then; its numbers are held to those that began the run.

    Args:
        server: the anchor. pairs: a pairs artefact. out: folder to make. anchor: its name.
        tokenizer: whose ids the pairs hold, the student's, so that it can be counted which survive as text.
        read: text, which is what a server reads, or nothing.

    Raises:
        AuditError: the server's numbers are shifted, have changed, or most of its answers do not fit.
        ConfigError, DataError, ArtifactError: see the message.
    """
    _refuse(anchor, tokenizer, read)
    served = load_tokenizer(server.tokenizer)
    made_from = {
        "anchor": anchor,
        "model": server.served(),
        "tokenizer": tokenizer_digest(served),
        "pairs": read_manifest(pairs, "pairs").files[ROWS],
        "read": "text",
        "backend": "completions server",
    }
    if finished(out, "scores", made_from):
        return Path(out)
    asked = _Served(server, served)
    assert tokenizer is not None
    rows = TextPairs(pairs, asked.tokenizer, load_tokenizer(tokenizer), server.model)
    with shared_draft(out, "scores", made_from, ranks_here()) as work, asked.server.connected():
        probe = take_probe(asked.server, asked.tokenizer, asked.vocabulary)
        hold_to_probe(work.draft.path / PROBE, probe, asked.server.place)
        _ask_all(work, asked, rows)
        _complete(work, asked, anchor, rows)
        work.draft.results["probe"] = asdict(probe)
    return Path(out)


def _refuse(anchor: str, tokenizer: ModelSpec | None, read: Route | None) -> None:
    if read == "ids":
        raise ConfigError("read ids: a server is sent text; expected text, or nothing")
    if ranks_here().size > 1:
        raise ConfigError(
            f"score with a server is one process and was started as {ranks_here().size}; server.concurrency says how "
            "much it asks at a time"
        )
    if anchor == "reference":
        raise ConfigError(
            "anchor reference: it is scored exactly as the policy trains, so not by a server; name its model"
        )
    if tokenizer is None:
        raise ConfigError(
            "a server reads the text of the pairs; so that it can be counted which ids survive that, say whose they "
            "are, the student's: --tokenizer.path FOLDER"
        )


class _Served:
    """The served model as a `Scorer` of the pairs that it was made to know."""

    def __init__(self, spec: ServerSpec, tokenizer: Any) -> None:
        self.server, self.tokenizer, self.vocabulary = CompletionsServer(spec), tokenizer, Vocabulary(tokenizer)
        self.known: dict[str, PairRow] = {}

    def task(self, pair: PairRow) -> tuple[tuple[str, Sides], list[Question]]:
        """Both responses as this model reads them; nothing is asked about a pair of which one side cannot be."""
        chosen = self._reading(pair, pair.chosen_text, pair.chosen_finish_reason == "stop")
        rejected = self._reading(pair, pair.rejected_text, pair.rejected_finish_reason == "stop")
        if isinstance(chosen, LeftOut) or isinstance(rejected, LeftOut):
            return (pair.pair_id, (chosen, rejected)), []
        return (pair.pair_id, (chosen, rejected)), [question_of(chosen), question_of(rejected)]

    def _reading(self, pair: PairRow, text: str, ended: bool) -> Reading | LeftOut:
        reading = read_response(self.tokenizer, pair.messages, text, ended)
        if isinstance(reading, LeftOut):
            return reading
        if reading.spelled is not None:
            return LeftOut("a special token written out in the text")
        sent = self.tokenizer.encode(reading.text_prompt + reading.text_response, add_special_tokens=False)
        if list(sent) != [*reading.prompt_token_ids, *reading.response_token_ids]:
            return LeftOut("prompt and response share a token")
        return reading

    def row(self, pair_id: str, sides: Sides, answers: Sequence[Answer]) -> AnsweredRow:
        """The answers to both sides as a row."""
        found: list[list[float]] = []
        for number, side in enumerate(sides):
            if isinstance(side, LeftOut):
                return AnsweredRow(pair_id, left_out=side.reason)
            if answers:
                log_probs = response_log_probs(answers[number], side, self.vocabulary)
                if isinstance(log_probs, Misread):
                    return AnsweredRow(pair_id, left_out=log_probs.reason, detail=log_probs.detail)
                found.append(log_probs)
        chosen, rejected = found
        return AnsweredRow(pair_id, math.fsum(chosen), len(chosen), math.fsum(rejected), len(rejected))

    def score(self, batch: PairBatch) -> PairLogProbs:
        """See `Scorer.score`; a batch of one is asked alone, one question after another."""
        rows: dict[str, AnsweredRow] = {}

        def tell(task: tuple[str, Sides], answers: list[Answer]) -> None:
            rows[task[0]] = self.row(*task, answers)

        self.server.ask((self.task(self.known[name]) for name in batch.pair_ids), tell)
        if refused := [row for row in rows.values() if row.left_out]:
            raise AuditError(
                f"{self.server.place}: scored pair {refused[0].pair_id} and cannot any more: {refused[0].left_out}, "
                f"{refused[0].detail}"
            )
        ordered = [rows[name] for name in batch.pair_ids]
        chosen, rejected = (
            SequenceLogProbs(torch.tensor(nats, dtype=torch.float64), torch.tensor(tokens))
            for nats, tokens in (
                ([row.chosen_log_prob for row in ordered], [row.chosen_num_tokens for row in ordered]),
                ([row.rejected_log_prob for row in ordered], [row.rejected_num_tokens for row in ordered]),
            )
        )
        return PairLogProbs(chosen, rejected)


def _ask_all(work: SharedDraft, asked: _Served, pairs: TextPairs) -> None:
    """Every pair that is missing, each written when both its answers are there."""
    names = [pair.pair_id for pair in pairs]
    number_of = {name: number for number, name in reversed(list(enumerate(names)))}
    refused = [row for row in read_rows(work.draft.path / ROWS, AnsweredRow) if row.left_out]

    def refuse_most() -> None:
        if refused and 2 * (len(refused) + len(pairs.left_out)) > pairs.read:
            raise AuditError(
                f"{asked.server.place}: more than half of {pairs.read} pairs cannot be scored; pair "
                f"{refused[0].pair_id}: {refused[0].left_out}{f', {refused[0].detail}' if refused[0].detail else ''} "
                f"(remove {work.draft.path} to ask again)"
            )

    with share(work, [[name] for name in names], AnsweredRow, _pair_id, "scoring on the server (pairs)") as own:

        def tell(task: tuple[str, Sides], answers: list[Answer]) -> None:
            row = asked.row(*task, answers)
            own.write(number_of[row.pair_id], [row])
            own.advance(1)
            if row.left_out:
                refused.append(row)
                refuse_most()

        refuse_most()
        asked.server.ask((asked.task(pairs[number]) for number in own), tell)


def _complete(work: SharedDraft, asked: _Served, anchor: str, pairs: TextPairs) -> None:
    """Audit the scores, then leave them as any other anchor's: `ScoreRow`s, and beside them who was left out."""
    path = work.draft.path / ROWS
    refused = {row.pair_id: row.left_out for row in read_rows(path, AnsweredRow) if row.left_out}
    left_out = pairs.left_out | refused
    scored = RowStore(pairs.path, PairRow, [pair_tokens], lambda pair: pair.pair_id not in left_out)
    asked.known = {pair.pair_id: pair for pair in audit_rows(scored)}
    tolerance = audit_live(anchor, ScoreTable(_scores(path), path), asked, scored, torch.device("cpu"), exact=False)
    counted = ", ".join(f"{reason}: {count}" for reason, count in Counter(left_out.values()).most_common())
    print(
        f"audit of {anchor}: {len(asked.known)} pairs asked again alone: agree; {len(scored)} pairs, left out "
        f"{len(left_out)}{f' ({counted})' if counted else ''}"
    )
    work.draft.counts = {"pairs": len(scored), "left_out": len(left_out)}
    audit = {"tolerance": asdict(tolerance), "rows": len(asked.known)}
    work.draft.results |= {"left_out": left_out, "changed_ids": dict(pairs.changed_ids), "audit": audit}
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    with RowWriter(beside) as writer:
        writer.write(*_scores(path))
    os.replace(beside, path)


def _scores(path: Path) -> Iterator[ScoreRow]:
    for row in read_rows(path, AnsweredRow):
        if not row.left_out:
            yield ScoreRow(
                row.pair_id,
                row.chosen_log_prob,
                row.chosen_num_tokens,
                row.rejected_log_prob,
                row.rejected_num_tokens,
            )


def _pair_id(row: Any) -> str:
    return str(row.pair_id)
