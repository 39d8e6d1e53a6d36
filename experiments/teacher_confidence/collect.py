"""Does daDPO gain most where the teacher is sure? From the finished walks of restore_pruned to results.json.

    python experiments/teacher_confidence/collect.py    # reads their evaluations; nothing is trained
    python experiments/tables.py write                  # the README

The teacher's margin of a held-out prompt is its log-prob of its own answer less that of the answer of the student after
dSFT, per token of each, since whole answers of unequal length are not comparable prompt by prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.estimates import evaluated
from experiments.restore_pruned.collect import folder_of, manifest
from experiments.tables import processor
from experiments.walking import ROOT, SEEDS, chosen_rates, named

PARTS = 10
OTHER = "ddpo"
GAINS = {"forward_kl": "teacher_tokens", "reverse_kl": "tokens"}


def answers() -> list[dict[str, Any]]:
    """A row a seed and prompt: the teacher's margin and what daDPO gains on dDPO, nats/token, positive is better."""
    rates, found = chosen_rates(), []
    ours, theirs = named("dadpo", rates["dadpo"]), named(OTHER, rates[OTHER])
    for seed in SEEDS:
        rows = evaluated(ROOT / "summaries" / f"seed{seed}.json")
        by_model = {(row["model"], row["prompt_id"]): row for row in rows}
        for prompt in sorted({row["prompt_id"] for row in rows}):
            teacher, dsft = by_model["teacher", prompt], by_model["dsft", prompt]
            margin = teacher["teacher_log_prob"] / teacher["tokens"] - dsft["teacher_log_prob"] / dsft["tokens"]
            one, other = by_model[ours, prompt], by_model[theirs, prompt]
            gains = {f"{key}_gain": other[key] / other[count] - one[key] / one[count] for key, count in GAINS.items()}
            found.append({"seed": seed, "prompt_id": prompt, "margin": margin} | gains)
    return found


def parted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a tenth of the answers by margin, the least sure first, with mean gains; prompts are drawn whole."""
    from lightning_dadpo.evaluation.bootstrap import ratio_interval

    ordered, found = sorted(rows, key=lambda row: row["margin"]), []
    for part in range(PARTS):
        mine = ordered[part * len(ordered) // PARTS : (part + 1) * len(ordered) // PARTS]
        margin = sum(one["margin"] for one in mine) / len(mine)
        row: dict[str, Any] = {"part": part + 1, "answers": len(mine), "margin": margin}
        for key in GAINS:
            by_prompt = [
                [one[f"{key}_gain"] for one in mine if one["prompt_id"] == prompt]
                for prompt in sorted({one["prompt_id"] for one in mine})
            ]
            interval = ratio_interval([sum(gains) for gains in by_prompt], [len(gains) for gains in by_prompt])
            row |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
        found.append(row)
    return found


def correlation(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Spearman's rank correlation of margin and gain, with a 95 % bootstrap interval over prompts."""
    import numpy as np
    from scipy.stats import spearmanr

    from lightning_dadpo.evaluation.bootstrap import draws, percentile_interval

    prompts = sorted({row["prompt_id"] for row in rows})
    margin, gain = (
        np.array([[row[name] for row in rows if row["prompt_id"] == prompt] for prompt in prompts])
        for name in ("margin", f"{key}_gain")
    )
    found = [spearmanr(margin[drawn].ravel(), gain[drawn].ravel()).statistic for drawn in draws(len(prompts), 2000, 0)]
    interval = percentile_interval(np.array(found))
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def main() -> None:
    """See the module."""
    rows = answers()
    evaluation = manifest(folder_of(ROOT / "summaries" / f"seed{SEEDS[0]}.json", "evaluation"))
    results = {
        "kind": "teacher_confidence",
        "command": "python experiments/teacher_confidence/collect.py",
        "hardware": processor(),
        "versions": evaluation["versions"],
        "precision": evaluation["results"]["precision"],
        "seeds": list(SEEDS),
        "prompts": evaluation["counts"]["prompts"],
        "answers": len(rows),
        "correlations": {key: correlation(rows, key) for key in GAINS},
        "rows": parted(rows),
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
