"""Responses of a model with another tokenizer, read as the student reads them: the same text in its ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft, finished, read_manifest
from lightning_dadpo.data.chat import UnplacedTextError, is_broken, render_turn
from lightning_dadpo.data.rows import ResponseRow, RowWriter, read_rows
from lightning_dadpo.errors import DataError

__all__ = ["reread_responses"]

ROWS = "rows.jsonl"


def reread_responses(responses: str, tokenizer: Any, tokenizer_digest: str, out: str) -> Path:
    """Make a responses artefact of another one, in the ids that this tokenizer and its chat template give its texts.

    A response that ended its turn ends with this template's end of turn, one that was cut has none (traps A3, A7).
    What the sampler saw of its own ids is not known of these, so `log_prob` is None. Texts that cannot be read are
    dropped and counted: broken_text (bytes that were no UTF-8), no_place (the template refuses the conversation),
    unknown_characters (the tokenizer has no token for some) and empty.

    Args:
        responses: the artefact of `dadpo sample`.
        tokenizer: the student's.
        tokenizer_digest: what names that tokenizer and its template in the manifest.
        out: folder to make; complete or absent.

    Raises:
        ArtifactError: `responses` is no complete responses artefact, or `out` holds something else.
        DataError: no response can be read; or the tokenizer has no chat template that can be used.
    """
    manifest = read_manifest(responses, "responses")
    made_from = manifest.made_from | {"reread_from": manifest.files[ROWS], "reread_by": tokenizer_digest}
    if finished(out, "responses", made_from):
        return Path(out)
    dropped: Counter[str] = Counter()
    counts = Counter(responses=0, stopped=0, tokens=0)
    with draft(out, "responses", made_from) as work:
        path = work.path / ROWS
        path.unlink(missing_ok=True)  # a killed run may have left some of the same rows
        with RowWriter(path) as writer:
            for row in read_rows(Path(responses) / ROWS, ResponseRow):
                found = _reread(row, tokenizer)
                if isinstance(found, str):
                    dropped[f"dropped_{found}"] += 1
                    continue
                writer.write(found)
                counts.update(responses=1, stopped=found.finish_reason == "stop", tokens=len(found.token_ids))
        if not counts["responses"]:
            listed = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
            raise DataError(f"{responses}: none of its responses can be read under another tokenizer ({listed})")
        work.counts = dict(counts) | dict(sorted(dropped.items()))
    return Path(out)


def _reread(row: ResponseRow, tokenizer: Any) -> ResponseRow | str:
    """The response in this tokenizer's ids, or why there are none."""
    if is_broken(row.text):
        return "broken_text"
    try:
        turn = render_turn(tokenizer, row.messages, row.text, row.finish_reason == "stop")
    except UnplacedTextError:
        return "no_place"
    ids = turn.response_token_ids
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    if not text.strip():
        return "empty"
    if is_broken(text) or tokenizer.unk_token_id in ids[: -1 if row.finish_reason == "stop" else None]:
        return "unknown_characters"
    return replace(row, prompt_token_ids=turn.prompt_token_ids, token_ids=ids, text=text, log_prob=None)
