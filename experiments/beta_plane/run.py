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
POINTS = [(one, other) for one in reversed(REFERENCE) for other in reversed(TEACHER) if one + other > 0]
"""Weights of reference and teacher; the one with the most weight first, which needs both scores."""


def point(reference: float, teacher: float) -> str:
    """What a point of the plane is called in the runs."""
    return f"reference{reference:g}-teacher{teacher:g}"


def plane() -> Settings:
    """The experiment: every point but the origin."""
    settings, rate = for_seed(SEEDS[0]), chosen_rates()["dadpo"]
    recipe = settings["objectives"]["dadpo"]
    settings["objectives"] = {
        point(*one): at(recipe, rate, beta_reference=one[0], beta_teacher=one[1]) for one in POINTS
    }
    return settings


if __name__ == "__main__":
    pass_on_requests_to_stop()
    walk(plane(), "beta_plane")
