"""From the finished walk of run.py to results.json, and to plane.yaml, which repeats it.

    python experiments/beta_plane/collect.py

Every point is compared with DPO at the reference's usual weight, and points of equal total beta with one another, on
the same prompts.
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.beta_plane.run import POINTS, plane, point
from experiments.estimates import compared, pooled, rows_by_method
from experiments.finished import about, evaluated, folder_of, kept, thread_hours
from experiments.walking import SEEDS, chosen_rates, ship

BASELINE = (0.1, 0.0)
Betas = tuple[float, float]


def betas(of: Betas) -> dict[str, float]:
    """A point, as a row says it."""
    return {"beta_reference": of[0], "beta_teacher": of[1]}


def equally_strong() -> list[tuple[Betas, Betas]]:
    """Points of equal total beta, the one with more of it for the teacher first."""
    ordered = sorted(POINTS, key=lambda one: -one[1])
    return [(one, other) for one, other in combinations(ordered, 2) if abs(sum(one) - sum(other)) < 1e-9]


def saturated(walk: dict[str, Any]) -> dict[str, Any]:
    """Quartiles of D_teacher - D_reference over the training pairs, nats, and what each point leaves of them."""
    from lightning_dadpo.evaluation.agreement import analyse_pairs

    weights = {point(*one): {"reference": one[0], "teacher": one[1]} for one in POINTS}
    scores = {anchor: folder_of(walk, f"score-{anchor}") for anchor in ("teacher", "reference")}
    found = analyse_pairs("pairs", folder_of(walk, "pairs"), scores, weights)
    agreement = found.agreement["teacher"]["train"]
    return {
        "quartiles": list(found.spread["teacher"]["train"].quartiles),
        "agreement": {"share": agreement.share, "share_low": agreement.low, "share_high": agreement.high},
        "rows": [betas(one) | {"saturated": found.saturated[point(*one)].shares["train"]} for one in POINTS],
    }


def main() -> None:
    """See the module."""
    walk = kept("beta_plane")
    sums = rows_by_method([evaluated(walk)], {name: name for name in (*(point(*one) for one in POINTS), "dsft")})
    results = {
        "kind": "beta_plane",
        "command": "python experiments/beta_plane/run.py",
        **about(walk),
        "thread_hours": thread_hours([walk], [kept(f"seed{SEEDS[0]}"), kept("tuning", "validation")]),
        "seed": SEEDS[0],
        "rate": chosen_rates()["dadpo"],
        "saturation": saturated(walk),
        "dsft": pooled(sums["dsft"]),
        "rows": [
            betas(one)
            | pooled(sums[point(*one)])
            | {f"{key}_change": value for key, value in compared(sums[point(*one)], sums[point(*BASELINE)]).items()}
            for one in POINTS
        ],
        "differences": [
            {"point": betas(one), "other": betas(other)} | compared(sums[point(*one)], sums[point(*other)])
            for one, other in equally_strong()
        ],
    }
    ship(plane(), Path(__file__), "plane")
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
