"""The stage `dadpo pair`: two models' responses, or imported preferences, to an artefact of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft, finished, read_manifest
from lightning_dadpo.data.batching import pair_tokens
from lightning_dadpo.data.importing import PreferenceSource, import_preferences, source_identity
from lightning_dadpo.data.row_store import RowStore
from lightning_dadpo.data.rows import PairRow, ResponseRow, RowWriter, content_digest, read_rows
from lightning_dadpo.errors import ConfigError, DataError

__all__ = ["Paired", "pair_responses", "make_pairs", "import_pairs", "read_pairs", "says_nothing"]

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Paired:
    """Pairs in the order of the chosen responses, and what became of the others.

    Attributes:
        pairs: what can be trained on.
        counts: `pairs`; `dropped_...` prompts by reason: only_chosen and only_rejected (the other side has no
            response), empty, chosen_cut, identical, over_long; `kept_chosen_cut` and `kept_rejected_cut` pairs.
    """

    pairs: list[PairRow]
    counts: dict[str, int]


def pair_responses(
    chosen: Iterable[ResponseRow],
    rejected: Iterable[ResponseRow],
    *,
    keep_cut_chosen: bool = False,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> Paired:
    """Join two models' responses by prompt_id: y_w from the first, y_l from the second (METHOD, pipeline).

    Ids are taken as they were sampled; nothing is cut, appended or tokenised again (traps A3, A6, A7).

    Args:
        chosen: the teacher's responses, one a prompt.
        rejected: the student's responses, one a prompt.
        keep_cut_chosen: keep pairs whose chosen response was stopped by the length cap.
        max_prompt_tokens: pairs with a longer prompt are dropped.
        max_response_tokens: pairs with a longer response are dropped.

    Raises:
        DataError: a side answers a prompt twice, or the sides read a prompt as other tokens (traps A8, A10) or
            place it in another split.
    """
    answers, others = _by_prompt(chosen, "chosen"), _by_prompt(rejected, "rejected")
    pairs: list[PairRow] = []
    counts: Counter[str] = Counter(
        dropped_only_chosen=len(answers.keys() - others.keys()),
        dropped_only_rejected=len(others.keys() - answers.keys()),
    )
    for prompt_id, better in answers.items():
        if (worse := others.get(prompt_id)) is None:
            continue
        _check_same_prompt(better, worse)
        if (reason := _unusable(better, worse, keep_cut_chosen, max_prompt_tokens, max_response_tokens)) is not None:
            counts[f"dropped_{reason}"] += 1
            continue
        counts["kept_chosen_cut"] += better.finish_reason == "length"
        counts["kept_rejected_cut"] += worse.finish_reason == "length"
        pairs.append(_pair(better, worse))
    return Paired(pairs, {"pairs": len(pairs), **{key: count for key, count in sorted(counts.items()) if count}})


def _by_prompt(rows: Iterable[ResponseRow], side: str) -> dict[str, ResponseRow]:
    found: dict[str, ResponseRow] = {}
    for row in rows:
        if row.prompt_id in found:
            raise DataError(f"{side} responses: prompt_id {row.prompt_id!r} is answered twice, expected one response")
        found[row.prompt_id] = row
    return found


def _check_same_prompt(chosen: ResponseRow, rejected: ResponseRow) -> None:
    if chosen.prompt_token_ids != rejected.prompt_token_ids:
        raise DataError(
            f"prompt_id {chosen.prompt_id!r}: the chosen and the rejected model read it as different tokens "
            f"({len(chosen.prompt_token_ids)} and {len(rejected.prompt_token_ids)}); sample both from the same "
            "prompts, with the same tokenizer and chat template"
        )
    if chosen.split != rejected.split:
        raise DataError(
            f"prompt_id {chosen.prompt_id!r}: split {chosen.split!r} among the chosen, {rejected.split!r} among the "
            "rejected responses"
        )


def _unusable(
    chosen: ResponseRow, rejected: ResponseRow, keep_cut_chosen: bool, max_prompt_tokens: int, max_response_tokens: int
) -> str | None:
    """Why a pair cannot be used: the first reason that applies."""
    if says_nothing(chosen) or says_nothing(rejected):
        return "empty"
    if chosen.finish_reason == "length" and not keep_cut_chosen:
        return "chosen_cut"
    if chosen.token_ids == rejected.token_ids:
        return "identical"
    longest = max(len(chosen.token_ids), len(rejected.token_ids))
    if len(chosen.prompt_token_ids) > max_prompt_tokens or longest > max_response_tokens:
        return "over_long"
    return None


def says_nothing(row: ResponseRow) -> bool:
    """No token at all, or the end-of-turn token alone: a response that stopped holds that token last."""
    return len(row.token_ids) <= (1 if row.finish_reason == "stop" else 0)


def _pair(chosen: ResponseRow, rejected: ResponseRow) -> PairRow:
    return PairRow(
        pair_id=content_digest(chosen.prompt_token_ids, chosen.token_ids, rejected.token_ids),
        prompt_id=chosen.prompt_id,
        split=chosen.split,
        messages=chosen.messages,
        prompt_token_ids=chosen.prompt_token_ids,
        chosen_token_ids=chosen.token_ids,
        chosen_text=chosen.text,
        chosen_finish_reason=chosen.finish_reason,
        rejected_token_ids=rejected.token_ids,
        rejected_text=rejected.text,
        rejected_finish_reason=rejected.finish_reason,
        chosen_log_prob=chosen.log_prob,
        rejected_log_prob=rejected.log_prob,
    )


def make_pairs(
    chosen: str,
    rejected: str,
    out: str,
    keep_cut_chosen: bool = False,
    max_prompt_tokens: int = 1024,
    max_response_tokens: int = 1024,
) -> Path:
    """Pair two responses artefacts, the teacher's and the student's; a finished artefact is left as it is.

    Args:
        chosen: folder of the teacher's responses.
        rejected: folder of the student's responses.
        out: folder to make; complete or absent.
        keep_cut_chosen: keep pairs whose chosen response was stopped by the length cap.
        max_prompt_tokens: pairs with a longer prompt are dropped and counted, never cut.
        max_response_tokens: pairs with a longer response are dropped and counted, never cut.

    Raises:
        ConfigError: a limit below 1.
        ArtifactError: an input is not a complete responses artefact, or `out` holds something else.
        DataError: see `pair_responses`; or no pair is left.
    """
    limits = {"max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens}
    for key, limit in limits.items():
        if limit < 1:
            raise ConfigError(f"{key} {limit}: expected at least 1")
    made_from: dict[str, Any] = {"keep_cut_chosen": keep_cut_chosen, **limits}
    for side, folder in (("chosen", chosen), ("rejected", rejected)):
        manifest = read_manifest(folder, "responses")
        made_from |= {f"{side}_responses": manifest.files[ROWS], f"{side}_model": manifest.made_from["model"]}
    if finished(out, "pairs", made_from):
        return Path(out)
    better, worse = (read_rows(Path(folder) / ROWS, ResponseRow) for folder in (chosen, rejected))
    paired = pair_responses(better, worse, keep_cut_chosen=keep_cut_chosen, **limits)
    if not paired.pairs:
        raise DataError(f"{chosen} and {rejected}: no pair is left to use ({_listed(paired.counts)})")
    return _write(out, made_from, paired)


def import_pairs(source: PreferenceSource, tokenizer: Any, tokenizer_digest: str, split: str, out: str) -> Path:
    """Keep imported preferences as a pairs artefact; a finished one is left as it is.

    Args:
        source: preference data in TRL's format.
        tokenizer: whose chat template renders it: the student's.
        tokenizer_digest: what names that tokenizer and its template in the manifest.
        split: the split that the pairs are to belong to: train, validation or heldout.
        out: folder to make; complete or absent.

    Raises:
        ArtifactError: `out` holds something else.
        DataError: see `import_preferences`.
    """
    made_from = {
        "source": source_identity(source),
        "tokenizer": tokenizer_digest,
        "split": split,
        "max_prompt_tokens": source.max_prompt_tokens,
        "max_response_tokens": source.max_response_tokens,
        "strict": source.strict,
    }
    if finished(out, "pairs", made_from):
        return Path(out)
    imported = import_preferences(source, tokenizer, split)
    dropped = {f"dropped_{reason}": count for reason, count in imported.dropped.items()}
    return _write(out, made_from, Paired(imported.pairs, {"pairs": len(imported.pairs), **dropped}))


def _write(out: str, made_from: dict[str, Any], paired: Paired) -> Path:
    with draft(out, "pairs", made_from) as work:
        path = work.path / ROWS
        path.unlink(missing_ok=True)  # a killed run may have left some of the same rows
        with RowWriter(path) as writer:
            writer.write(*paired.pairs)
        work.counts = dict(paired.counts)
    return Path(out)


def read_pairs(folder: str | Path, split: str | None = None) -> RowStore[PairRow]:
    """The pairs of an artefact, in its order; those of one split, or all of them. They stay on disk.

    Raises:
        ArtifactError: the folder is no complete pairs artefact.
        DataError: a line is no pair, or there is no pair of that split; the message names the splits it has.
    """
    read_manifest(folder, "pairs")
    splits: Counter[str] = Counter()

    def wanted(row: PairRow) -> bool:
        splits[row.split] += 1
        return split in (None, row.split)

    pairs = RowStore(Path(folder) / ROWS, PairRow, [pair_tokens], wanted)
    if not pairs:
        raise DataError(f"{folder}: no pairs of split {split!r}; it has {_listed(splits)}")
    return pairs


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
