"""The stage `dadpo pair`: two models' responses, or imported preferences, to an artefact of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft, finished, read_manifest
from lightning_dadpo.data.batching import pair_tokens
from lightning_dadpo.data.importing import PreferenceSource, import_preferences, source_identity
from lightning_dadpo.data.joining import Paired, ScoreOf, pair_responses, says_nothing, unscored
from lightning_dadpo.data.judged import judge, one_judge
from lightning_dadpo.data.pairing_rules import RULES, PairingRule
from lightning_dadpo.data.row_store import RowStore
from lightning_dadpo.data.rows import PairRow, ResponseRow, RowWriter, read_rows
from lightning_dadpo.errors import ConfigError, DataError

__all__ = ["Paired", "pair_responses", "make_pairs", "import_pairs", "read_pairs", "says_nothing"]

ROWS = "rows.jsonl"


def make_pairs(
    chosen: str,
    rejected: str,
    out: str,
    keep_cut_chosen: bool = False,
    max_prompt_tokens: int = 1024,
    max_response_tokens: int = 1024,
    rule: PairingRule = "first_of_each",
    chosen_scores: str | None = None,
    rejected_scores: str | None = None,
) -> Path:
    """Pair two responses artefacts, the teacher's and the student's; a finished artefact is left as it is.

    Args:
        chosen: folder of the teacher's responses.
        rejected: folder of the student's responses; or the same folder, for a rule that chooses among one model's.
        out: folder to make; complete or absent.
        keep_cut_chosen: keep pairs whose chosen response was stopped by the length cap.
        max_prompt_tokens: pairs with a longer prompt are dropped and counted, never cut.
        max_response_tokens: pairs with a longer response are dropped and counted, never cut.
        rule: first_of_each, or best_and_worst by the teacher's nats per token.
        chosen_scores: the teacher's scores of the chosen responses (`dadpo score-responses`), for a rule that asks;
            without them what their sampler noted, which must have been the teacher.
        rejected_scores: the same for the rejected responses; where both are one folder, chosen_scores say it.

    Raises:
        ConfigError: a limit below 1; scores that the rule does not ask for, or of two teachers.
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
    scores, judged = _scores(rule, chosen, rejected, chosen_scores, rejected_scores)
    made_from |= judged
    if finished(out, "pairs", made_from):
        return Path(out)
    better, worse = (read_rows(Path(folder) / ROWS, ResponseRow) for folder in (chosen, rejected))
    paired = pair_responses(better, worse, keep_cut_chosen=keep_cut_chosen, **limits, rule=rule, scores=scores)
    if not paired.pairs:
        raise DataError(f"{chosen} and {rejected}: no pair is left to use ({_listed(paired.counts)})")
    return _write(out, made_from, paired)


def _scores(
    rule: PairingRule, chosen: str, rejected: str, chosen_scores: str | None, rejected_scores: str | None
) -> tuple[tuple[ScoreOf, ScoreOf], dict[str, Any]]:
    """What the rule is told of either side's responses, and what the manifest says of it.

    A manifest says nothing of the paper's rule, so that artefacts from before there were others are still the same.
    """
    same = Path(chosen).resolve() == Path(rejected).resolve()
    if not RULES[rule].asks_teacher:
        if chosen_scores or rejected_scores or same:
            raise ConfigError(f"rule {rule}: expected two responses folders and no scores, or --rule best_and_worst")
        return (unscored, unscored), {} if rule == "first_of_each" else {"rule": rule}
    sides = judge(chosen, chosen_scores), judge(rejected, rejected_scores or (chosen_scores if same else None))
    one_judge(*sides, rule)
    judged = {"rule": rule, "judge": sides[0].model, "judged": [side.made_from for side in sides]}
    return (sides[0].score, sides[1].score), judged


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


def read_pairs(
    folder: str | Path, split: str | None = None, keep: Callable[[PairRow], bool] = lambda pair: True
) -> RowStore[PairRow]:
    """The pairs of an artefact, in its order; those of one split, or all of them. They stay on disk.

    Args:
        folder: the artefact.
        split: train, validation or heldout.
        keep: pairs of that split for which it says no are left out.

    Raises:
        ArtifactError: the folder is no complete pairs artefact.
        DataError: a line is no pair, or there is no pair of that split; the message names the splits it has.
    """
    read_manifest(folder, "pairs")
    splits: Counter[str] = Counter()

    def wanted(row: PairRow) -> bool:
        splits[row.split] += 1
        return split in (None, row.split) and keep(row)

    pairs = RowStore(Path(folder) / ROWS, PairRow, [pair_tokens], wanted)
    if not (pairs or splits[split or ""]):
        raise DataError(f"{folder}: no pairs of split {split!r}; it has {_listed(splits)}")
    return pairs


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
