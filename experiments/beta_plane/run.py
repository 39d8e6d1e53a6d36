"""daDPO over a plane of its two betas, from one scoring; README.md says what for.

python experiments/beta_plane/run.py                # after restore_pruned, whose first seed's scores it uses
python experiments/beta_plane/collect.py            # results.json
python experiments/tables.py write                  # the README

Killed, it goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.walking import SEEDS, Settings, at, chosen_rates, for_seed, pass_on_requests_to_stop, walk

REFERENCE = (0.0, 0.03, 0.1)
TEACHER = (0.0, 0.01, 0.03, 0.1)


def point(reference: float, teacher: float) -> str:
    """What a point of the plane is called in the runs."""
    return f"reference{reference:g}-teacher{teacher:g}"


def plane() -> Settings:
    """The experiment: every point but the origin, the one with the most weight first, which needs both scores."""
    settings, rate = for_seed(SEEDS[0]), chosen_rates()["dadpo"]
    recipe = settings["objectives"]["dadpo"]
    points = [(reference, teacher) for reference in reversed(REFERENCE) for teacher in reversed(TEACHER)]
    settings["objectives"] = {
        point(reference, teacher): at(recipe, rate, beta_reference=reference, beta_teacher=teacher)
        for reference, teacher in points
        if reference + teacher > 0
    }
    return settings


if __name__ == "__main__":
    pass_on_requests_to_stop()
    walk(plane(), "beta_plane")
