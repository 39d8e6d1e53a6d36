"""The stage `dadpo validate-judge`: how often a judge says what people say, before its verdicts are believed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft, file_digest, finished, write_atomically
from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.evaluation.agreement_with_people import CRITERION, ValidationRow, agreements, shortcomings
from lightning_dadpo.evaluation.asking import InBothOrders, Judged, judged_rows
from lightning_dadpo.evaluation.judge_tables import say_validation
from lightning_dadpo.evaluation.judges import Comparison, Judge, Preference
from lightning_dadpo.evaluation.people import LLMBAR, PANDALM, JudgedPair, read_people
from lightning_dadpo.evaluation.people_files import PeopleFiles
from lightning_dadpo.evaluation.preference_rate import Verdict, combine, longer_wins

__all__ = ["validate_judge"]

ROWS = "rows.jsonl"
VALIDATION = "validation.json"
ALL = "all"

PAIRS_AT_A_TIME = 32
"""Pairs that are asked about in one call and then written: what a kill can lose."""

IN_PEOPLES_ORDER: dict[Verdict, Preference] = {"win": "first", "tie": "tie", "lose": "second"}


def validate_judge(judge: Judge, people: PeopleFiles, out: str, resamples: int = 2000) -> Path:
    """Hold a judge against people; a killed run asks only what is missing.

    Makes an artefact of kind "judge-validation": `rows.jsonl`, a `ValidationRow` a pair, and `validation.json`: `judge`
    (`name`, `identity`), `criterion`, `passes`, `reasons` (why not) and `sets`, the rows of `agreements` for each file,
    for PandaLM and LLMBar as a whole, and for all. The manifest's results hold it too, without the judge.

    Args:
        judge: whom to validate.
        people: files of people's judgements.
        out: folder to make; complete or absent.
        resamples: bootstrap draws over questions for the 95 % intervals.

    Raises:
        ConfigError: a number out of range; or the judge cannot be asked.
        DataError: a file is not in its form.
        ArtifactError: something else stands at `out`.
    """
    if resamples < 1:
        raise ConfigError(f"resamples {resamples}: expected at least 1")
    pairs = read_people(people)
    identity = [judge.name, judge.identity()]
    made_from = {
        "judge": identity,
        "people": {Path(path).stem: file_digest(Path(path)) for path in people.paths},
        "resamples": resamples,
    }
    if not finished(out, "judge-validation", made_from):
        with draft(out, "judge-validation", made_from) as work:
            judged = _ask(work.path / ROWS, judge, pairs)
            sets = _sets(judged.rows, resamples)
            reasons = shortcomings(sets)
            found = {"criterion": CRITERION, "passes": not reasons, "reasons": reasons, "sets": sets}
            said = {"judge": {"name": judge.name, "identity": identity[1]}, **found}
            write_atomically(work.path / VALIDATION, json.dumps(said, indent=1, allow_nan=False) + "\n")
            work.counts, work.results = {"pairs": len(pairs), **judged.counts}, found
    say_validation(json.loads((Path(out) / VALIDATION).read_text("utf-8")))
    return Path(out)


def _ask(path: Path, judge: Judge, pairs: Sequence[JudgedPair]) -> Judged[ValidationRow]:
    by_id = {pair.comparison.comparison_id: pair for pair in pairs}
    windows = [
        [pair.comparison for pair in pairs[at : at + PAIRS_AT_A_TIME]] for at in range(0, len(pairs), PAIRS_AT_A_TIME)
    ]

    def to_row(comparison: Comparison, said: InBothOrders) -> ValidationRow:
        return _row(by_id[comparison.comparison_id], said)

    return judged_rows(path, ValidationRow, lambda row: row.pair_id, judge, windows, to_row)


def _row(pair: JudgedPair, said: InBothOrders) -> ValidationRow:
    asked = pair.comparison
    return ValidationRow(
        kind=pair.kind,
        part=pair.part,
        pair_id=asked.comparison_id,
        prompt=content_digest([[turn.role, turn.content] for turn in asked.messages]),
        people=pair.people,
        as_is=said.as_is,
        swapped=said.swapped,
        judge=IN_PEOPLES_ORDER[combine(said.as_is, said.swapped)],
        longer=IN_PEOPLES_ORDER[longer_wins([len(asked.first)], [len(asked.second)])[0]],
    )


def _sets(rows: list[ValidationRow], resamples: int) -> list[dict[str, Any]]:
    """Agreements of PandaLM, of LLMBar as a whole and its parts, and of all."""
    chosen = {kind: [row for row in rows if row.kind == kind] for kind in (PANDALM, LLMBAR)}
    parts = dict.fromkeys(row.part for row in chosen[LLMBAR])
    named = {
        **{kind: found for kind, found in chosen.items() if found},
        **{part: [row for row in chosen[LLMBAR] if row.part == part] for part in parts},
        ALL: rows,
    }
    return [{"set": name, **agreements(found, resamples)} for name, found in named.items()]
