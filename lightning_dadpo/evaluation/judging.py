"""The stage `dadpo judge`: candidates' responses against an opponent's, by a judge that is asked in both orders."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft, finished, read_manifest, write_atomically
from lightning_dadpo.data.rows import ResponseRow, content_digest
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.evaluation.answers import Answers, check_same_sampler, read_answers
from lightning_dadpo.evaluation.asking import InBothOrders, Judged, judged_rows
from lightning_dadpo.evaluation.judge_tables import say_preferences
from lightning_dadpo.evaluation.judges import Comparison, Judge
from lightning_dadpo.evaluation.left_out import leave_out, training_digests
from lightning_dadpo.evaluation.preference_rate import combine
from lightning_dadpo.evaluation.verdicts import VerdictRow, differences, summarise

__all__ = ["judge"]

ROWS = "rows.jsonl"
PREFERENCE = "preference.json"

PAIRS_AT_A_TIME = 32
"""Pairs, of all candidates on a few prompts, that are asked about in one call and then written: what a kill can lose.
The opponent's response to a prompt is the same for all candidates: a judge that scores responses scores it once."""


def judge(
    candidates: dict[str, str],
    opponent: str,
    judge: Judge,
    out: str,
    split: str = "heldout",
    trained_on: list[str] | None = None,
    validations: list[str] | None = None,
    resamples: int = 2000,
) -> Path:
    """Judge candidates' responses against an opponent's; a killed run asks only what is missing.

    Makes an artefact of kind "verdicts": `rows.jsonl`, a `VerdictRow` a model and prompt, and `preference.json`:
    `judge` (`name`, `identity`, `validations`), `opponent` (the folder), `rows` (`verdicts.summarise`) and
    `differences` of preference rates, paired by prompt.

    Args:
        candidates: responses folders by the names that the tables call them.
        opponent: responses folder of the model that they are held against, mostly the teacher.
        judge: who decides; it should be neither the teacher nor part of any loss.
        out: folder to make; complete or absent.
        split: which prompts of the folders count.
        trained_on: what the models were trained on, prompt files (.jsonl) or artefacts of kind "responses" or "pairs";
            prompts that stand there too, exactly or nearly (`data.overlap`), are left out and counted.
        validations: what `dadpo validate-judge` made with this very judge; said beside its verdicts.
        resamples: bootstrap draws over prompts for the 95 % intervals.

    Raises:
        ConfigError: no candidates, or a number out of range; or the judge cannot be asked.
        ArtifactError: a folder is incomplete or of another kind, or a validation is another judge's.
        DataError: models answered different prompts or were sampled under different settings, or every prompt was
            trained on.
    """
    _check_arguments(candidates, resamples)
    other = read_answers("opponent", opponent, split)
    sides = [read_answers(name, folder, split) for name, folder in candidates.items()]
    _check_same_questions(other, sides)
    check_same_sampler([other, *sides] if other.sampler else sides)  # an imported file does not say
    validated = [_validation(folder, judge) for folder in validations or []]
    identity = judge.identity()
    made_from = {
        "candidates": {side.name: side.digest for side in sides},
        "opponent": other.digest,
        "judge": [judge.name, identity],
        "split": split,
        "validations": [content_digest(one) for one in validated],
        "resamples": resamples,
    } | ({"trained_on": training_digests(trained_on)} if trained_on else {})
    if not finished(out, "verdicts", made_from):
        asked = {prompt: row.messages for prompt, row in other.rows.items()}
        left_out = leave_out(asked, trained_on or [], f"prompts of split {split!r}")
        with draft(out, "verdicts", made_from) as work:
            judged = _verdicts(work.path / ROWS, judge, other, sides, left_out)
            verdicts = {name: [row for row in judged.rows if row.model == name] for name in candidates}
            found = {
                "judge": {"name": judge.name, "identity": identity, "validations": validated},
                "opponent": opponent,
                "rows": [summarise(name, rows, resamples) for name, rows in verdicts.items()],
                "differences": differences(verdicts, resamples),
            }
            write_atomically(work.path / PREFERENCE, json.dumps(found, indent=1, allow_nan=False) + "\n")
            work.counts = {"models": len(sides), "prompts": len(other.rows) - len(left_out), **judged.counts}
            work.results = {"sampler": sides[0].sampler, "opponent_sampler": other.sampler}
            if trained_on:
                work.results["left_out"] = {prompt: str(overlap) for prompt, overlap in left_out.items()}
    say_preferences(json.loads((Path(out) / PREFERENCE).read_text("utf-8")))
    return Path(out)


def _verdicts(
    path: Path, judge: Judge, opponent: Answers, sides: Sequence[Answers], left_out: Container[str]
) -> Judged[VerdictRow]:
    """Every verdict, all candidates' on the opponent's first prompt first."""
    prompts = [prompt for prompt in opponent.rows if prompt not in left_out]
    asked = {f"{side.name}/{prompt}": (side, prompt) for prompt in prompts for side in sides}
    comparisons = [
        Comparison(name, side.rows[prompt].messages, side.rows[prompt].text, opponent.rows[prompt].text)
        for name, (side, prompt) in asked.items()
    ]

    def to_row(comparison: Comparison, said: InBothOrders) -> VerdictRow:
        side, prompt = asked[comparison.comparison_id]
        return _row(side.name, side.rows[prompt], opponent.rows[prompt], said)

    at_a_time = max(1, PAIRS_AT_A_TIME // len(sides)) * len(sides)  # no prompt in two calls
    windows = [comparisons[at : at + at_a_time] for at in range(0, len(comparisons), at_a_time)]
    return judged_rows(path, VerdictRow, lambda row: f"{row.model}/{row.prompt_id}", judge, windows, to_row)


def _row(model: str, own: ResponseRow, other: ResponseRow, said: InBothOrders) -> VerdictRow:
    return VerdictRow(
        model=model,
        prompt_id=own.prompt_id,
        candidate_first=said.as_is,
        candidate_second=said.swapped,
        verdict=combine(said.as_is, said.swapped),
        characters=len(own.text),
        opponent_characters=len(other.text),
        tokens=len(own.token_ids),
        opponent_tokens=len(other.token_ids),
    )


def _check_same_questions(opponent: Answers, sides: list[Answers]) -> None:
    """Refuse candidates that answered other conversations than the opponent."""
    for side in sides:
        if lacking := sorted(opponent.rows.keys() ^ side.rows.keys()):
            raise DataError(
                f"{side.folder}: {side.name} answered other prompts than the opponent in {opponent.folder} "
                f"({len(lacking)} differ, {lacking[0]!r} is one)"
            )
        for prompt, row in side.rows.items():
            if row.messages != opponent.rows[prompt].messages:
                raise DataError(f"{side.folder}: prompt {prompt!r} is another conversation than in {opponent.folder}")


def _validation(folder: str, judge: Judge) -> dict[str, Any]:
    """What is said of a judge that was held against people."""
    manifest = read_manifest(folder, "judge-validation")
    wanted = json.loads(json.dumps([judge.name, judge.identity()]))
    if manifest.made_from["judge"] != wanted:
        raise ArtifactError(
            f"{folder}: validates the judge {manifest.made_from['judge']}, but {wanted} is asked; validate this one"
        )
    said: dict[str, Any] = dict(manifest.results)
    return said


def _check_arguments(candidates: dict[str, str], resamples: int) -> None:
    if not candidates:
        raise ConfigError("candidates: none given, expected at least one")
    if wrong := [name for name in candidates if not name or "/" in name]:  # comparisons are called NAME/PROMPT
        raise ConfigError(f"candidates: the name {wrong[0]!r}, expected one without a slash")
    if resamples < 1:
        raise ConfigError(f"resamples {resamples}: expected at least 1")
