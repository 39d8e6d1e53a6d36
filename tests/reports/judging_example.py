"""A judge held against people, its verdicts and IFEval's results, as made-up artefacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft

__all__ = ["JUDGE", "ifeval", "validation", "verdicts"]


def _bounds(**values: float) -> dict[str, float]:
    return {f"{key}{end}": value + step for key, value in values.items() for end, step in BOUNDS}


BOUNDS = (("", 0.0), ("_low", -0.06), ("_high", 0.06))
JUDGE = {"name": "qwen", "identity": {"model": "0123456789abcdef", "prompt": 1}}


def validation(folder: Path, passes: bool = True, judge: Any = None) -> Path:
    """A judge held against people."""
    agreement = 0.8 if passes else 0.5
    sets = [
        {"set": name, "pairs": 100, "untied": 80, "chance": 0.5,
         **_bounds(agreement=agreement, longer_wins=0.68, difference=agreement - 0.68, consistent=0.9)}
        for name in ("PandaLM", "LLMBar", "LLMBar__Natural")
    ]  # fmt: skip
    made_from = {"judge": [(judge or JUDGE)["name"], (judge or JUDGE)["identity"]]}
    reasons = [] if passes else ['PandaLM: its lower bound 44.0% is not above "longer wins", 68.0%']
    with draft(folder, "judge-validation", made_from) as work:
        work.results |= {"criterion": "as it was set", "passes": passes, "reasons": reasons, "sets": sets}
    return folder


def verdicts(
    folder: Path, opponent: Path, judge: Any = None, names: tuple[str, ...] = ("pruned", "dsft", "ddpo", "dadpo"),
    rate: float = -0.25,
) -> Path:  # fmt: skip
    """A judge's verdicts on four students; each a little better than the one before."""
    rows = [
        {"model": name, "prompts": 48,
         **_bounds(win=0.2, tie=0.35, lose=0.2 - rate, preference_rate=rate, length_controlled=rate + 0.05,
                   longer_wins=-0.4, consistent=0.75, mean_tokens=38.0, opponent_mean_tokens=41.0)}
        for name in names
    ]  # fmt: skip
    differences = [{"model": names[0], "other": name, **_bounds(difference=-0.1)} for name in names[1:]]
    found = {"judge": {**(judge or JUDGE), "validations": []}, "opponent": str(opponent), "rows": rows}
    with draft(folder, "verdicts", {"judge": judge}) as work:
        (work.path / "preference.json").write_text(json.dumps(found | {"differences": differences}), "utf-8")
        lines = [
            {"model": name, "prompt_id": f"p{number}", "verdict": ("lose", "tie", "win")[number % 3]}
            for name in names for number in range(12)
        ]  # fmt: skip
        (work.path / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return folder


def ifeval(folder: Path, names: tuple[str, ...] = ("dadpo", "teacher")) -> Path:
    """Instructions followed."""
    shares = {"prompt_strict": 0.2, "instruction_strict": 0.3, "prompt_loose": 0.25, "instruction_loose": 0.35}
    rows = [
        {"model": name, "prompts": 541, "instructions": 834, **_bounds(**shares, finished=0.7, mean_tokens=90.0)}
        for name in names
    ]
    differences = [
        {"model": names[0], "other": name, "prompts": 541, **_bounds(**dict.fromkeys(shares, -0.1))}
        for name in names[1:]
    ]
    with draft(folder, "ifeval", {}) as work:
        found = {"rows": rows, "families": [], "differences": differences}
        (work.path / "ifeval.json").write_text(json.dumps(found), "utf-8")
        work.results |= {"left_out": {"ifeval-7": "no language data"}}
    return folder
