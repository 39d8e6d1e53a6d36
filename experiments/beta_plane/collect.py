"""From the finished walk of run.py to results.json.

    python experiments/beta_plane/collect.py

Every point is compared with DPO at the reference's weight alone, on the same prompts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.beta_plane.run import REFERENCE, TEACHER, point
from experiments.estimates import compared, evaluated, pooled, rows_by_method
from experiments.restore_pruned.collect import folder_of, manifest
from experiments.tables import processor
from experiments.walking import ROOT, SEEDS, chosen_rates

BASELINE = (0.1, 0.0)


def main() -> None:
    """See the module."""
    summary = ROOT / "summaries" / "beta_plane.json"
    points = {point(reference, teacher): (reference, teacher) for reference in REFERENCE for teacher in TEACHER}
    sums = rows_by_method([evaluated(summary)], {name: name for name in (*points, "dsft")})
    rows = [
        {"beta_reference": betas[0], "beta_teacher": betas[1]}
        | pooled(sums[name])
        | {f"{key}_change": value for key, value in compared(sums[name], sums[point(*BASELINE)]).items()}
        for name, betas in points.items()
        if name in sums
    ]
    evaluation = manifest(folder_of(summary, "evaluation"))
    scores = manifest(folder_of(summary, "score-teacher"))
    results = {
        "kind": "beta_plane",
        "command": "python experiments/beta_plane/run.py",
        "hardware": processor(),
        "versions": evaluation["versions"],
        "precision": evaluation["results"]["precision"],
        "seed": SEEDS[0],
        "rate": chosen_rates()["dadpo"],
        "prompts": evaluation["counts"]["prompts"],
        "saturation": scores["results"],
        "dsft": pooled(sums["dsft"]),
        "rows": rows,
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
