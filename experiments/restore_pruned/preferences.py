"""What a judge said of all seeds: the primary outcome, where the judge may be believed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.finished import folder_of
from experiments.walking import chosen_rates, named

__all__ = ["BASELINES", "preferences"]

BASELINES = ("ddpo", "dsft")
"""What every method is compared with."""
Verdicts = Mapping[str, Mapping[str, float]]
"""Prompt id -> `points` and `longer`, what the longer answer would have got, summed over the seeds; `asked`."""


def preferences(walks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Preference rates against the teacher over all seeds, and their differences paired by prompt.

    Returns:
        `judge` and whether it `passes`; only then `rows`, one a method, and `differences`. None where nobody judged.
    """
    if not all("preference" in walk for walk in walks):
        return None
    judge = walks[0]["preference"]["judge"]
    validations = judge["validations"]
    passes = bool(validations) and all(one["passes"] for one in validations)
    found: dict[str, Any] = {"judge": judge["name"], "passes": passes}
    if not passes:
        return found
    names = {"dsft": "dsft"} | {named(method, rate): method for method, rate in chosen_rates().items()}
    verdicts = _verdicts(walks, names)
    found["rows"] = [{"method": method} | _rate(verdicts[method]) for method in names.values()]
    found["differences"] = [
        {"method": method, "other": other} | _difference(verdicts[method], verdicts[other])
        for other in BASELINES
        for method in names.values()
        if method not in (other, "dsft")
    ]
    return found


def _verdicts(walks: Sequence[dict[str, Any]], names: Mapping[str, str]) -> dict[str, Verdicts]:
    from lightning_dadpo.evaluation.preference_rate import POINTS, longer_wins

    found: dict[str, dict[str, dict[str, float]]] = {method: {} for method in names.values()}
    for walk in walks:
        for line in (folder_of(walk, "verdicts") / "rows.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["model"] in names:
                sums = found[names[row["model"]]].setdefault(row["prompt_id"], {"points": 0, "longer": 0, "asked": 0})
                sums["points"] += POINTS[row["verdict"]]
                (longer,) = longer_wins([row["characters"]], [row["opponent_characters"]])
                sums["longer"] += POINTS[longer]
                sums["asked"] += 1
    counts = {sums["asked"] for prompts in found.values() for sums in prompts.values()}
    if counts != {len(walks)} or len({frozenset(prompts) for prompts in found.values()}) > 1:
        raise ValueError("some method was not judged on some prompt in some seed; finish every walk first")
    return dict(found)


def _columns(verdicts: Verdicts, column: str) -> tuple[list[float], list[float]]:
    prompts = sorted(verdicts)
    return [verdicts[prompt][column] for prompt in prompts], [verdicts[prompt]["asked"] for prompt in prompts]


def _rate(verdicts: Verdicts) -> dict[str, float]:
    from lightning_dadpo.evaluation.bootstrap import ratio_interval

    found = {}
    for name, column in (("preference_rate", "points"), ("longer_wins", "longer")):
        interval = ratio_interval(*_columns(verdicts, column))
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def _difference(verdicts: Verdicts, other: Verdicts) -> dict[str, float]:
    from lightning_dadpo.evaluation.bootstrap import ratio_difference

    interval = ratio_difference(*_columns(verdicts, "points"), *_columns(other, "points"))
    return {
        "preference_rate": interval.value,
        "preference_rate_low": interval.low,
        "preference_rate_high": interval.high,
    }
