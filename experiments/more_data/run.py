"""dDPO and daDPO with more prompts, and with more rounds; README.md says what for.

python experiments/more_data/run.py                 # after restore_pruned, whose first seed it goes on from
python experiments/more_data/collect.py             # results.json
python experiments/tables.py write                  # the README

Killed, it goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.walking import SEEDS, Settings, at, chosen_rates, for_seed, pass_on_requests_to_stop, walk

PROMPTS = (64, 128, 264)
ROUNDS = 2
METHODS = ("dadpo", "ddpo")


def sized(prompts: int, rounds: int = 1) -> Settings:
    """The first seed with fewer prompts, or more rounds."""
    settings, rates = for_seed(SEEDS[0]), chosen_rates()
    if prompts < PROMPTS[-1]:  # all of them are restore_pruned's own, which are not drawn again
        settings["prompts"]["train"]["limit"] = prompts
    settings["rounds"] = rounds
    settings["objectives"] = {method: at(settings["objectives"][method], rates[method]) for method in METHODS}
    return settings


if __name__ == "__main__":
    pass_on_requests_to_stop()
    for prompts in PROMPTS:
        walk(sized(prompts), f"prompts{prompts}")
    walk(sized(PROMPTS[-1], ROUNDS), f"rounds{ROUNDS}")
