"""What each round did, for reports: `rounds.json` in the experiment's folder, read from the stages' manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_dadpo.cli.rounds import RoundPlan
from lightning_dadpo.data.artifacts import read_manifest

__all__ = ["record_rounds", "round_row"]

DROPPED = "dropped_"


def record_rounds(rounds: list[RoundPlan]) -> str:
    """The text of `rounds.json`: a row a round and objective, in the order in which they were run."""
    return json.dumps([round_row(one) for one in rounds], indent=1)


def round_row(plan: RoundPlan) -> dict[str, Any]:
    """One round of one objective.

    Returns:
        round, objective; rejected_from and chosen_from (names of models), seed; of the rejected responses `responses`,
        the share `finished` that ended by themselves and `mean_tokens`; `pairs` that came of them and `dropped` prompts
        by reason; `trained_on` pairs, `repeated_pairs` of earlier rounds among them; by anchor `scores` with `scored`
        and `reused` pairs, and the sums of both over anchors; `reference` and `start` (names of models); `margin`, the
        mean over the round's validation pairs at its end (dimensionless); `student_folder`.
    """
    responses, paired = (read_manifest(folder).counts for folder in (plan.responses, plan.pairs))
    mixed = read_manifest(plan.trained_on).counts
    scores = {anchor: _scored(folder) for anchor, folder in plan.scores.items()}
    return {
        "round": plan.round,
        "objective": plan.objective,
        "rejected_from": plan.rejected_from,
        "chosen_from": plan.chosen_from,
        "seed": plan.seed,
        "responses": responses["responses"],
        "finished": responses["stopped"] / responses["responses"],
        "mean_tokens": responses["tokens"] / responses["responses"],
        "pairs": paired["pairs"],
        "dropped": {
            key.removeprefix(DROPPED): count for key, count in sorted(paired.items()) if key.startswith(DROPPED)
        },
        "trained_on": mixed["pairs"],
        "repeated_pairs": mixed.get("earlier", 0),
        "scores": scores,
        "scored": sum(one["scored"] for one in scores.values()),
        "reused": sum(one["reused"] for one in scores.values()),
        "reference": plan.reference,
        "start": plan.start,
        "margin": _mean_margin(Path(plan.training) / "validation_pairs.jsonl"),
        "student_folder": Path(plan.student).name,
    }


def _scored(folder: str) -> Mapping[str, int]:
    counts = read_manifest(folder, "scores").counts
    reused = counts.get("reused", 0)
    return {"scored": counts["pairs"] - reused, "reused": reused}


def _mean_margin(path: Path) -> float | None:
    """None where nothing was validated."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as lines:
        margins = [float(json.loads(line)["margin"]) for line in lines if line.strip()]
    return sum(margins) / len(margins) if margins else None
