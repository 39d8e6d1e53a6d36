"""Does daDPO gain most where the teacher is sure? From the finished walks of restore_pruned to results.json.

    python experiments/teacher_confidence/collect.py    # reads their evaluations; nothing is trained
    python experiments/tables.py write                  # the README

The teacher's margin of a held-out prompt is its log-prob of its own answer less that of the answer of the student after
dSFT: per token of each, as was fixed before the first run, and of whole answers, as the gradient has it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.finished import about, evaluated, kept
from experiments.walking import SEEDS, chosen_rates, named

PARTS = 10
OTHER = "ddpo"
GAINS = {"forward_kl": "teacher_tokens", "reverse_kl": "tokens"}
MARGINS = ("per_token", "whole")


def answers(walks: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a seed and prompt: the teacher's margins in nats, and what daDPO gains on dDPO, nats/token, positive is
    better.
    """
    rates, found = chosen_rates(), []
    ours, theirs = named("dadpo", rates["dadpo"]), named(OTHER, rates[OTHER])
    for seed, walk in walks.items():
        rows = evaluated(walk)
        by_model = {(row["model"], row["prompt_id"]): row for row in rows}
        for prompt in sorted({row["prompt_id"] for row in rows}):
            teacher, dsft = by_model["teacher", prompt], by_model["dsft", prompt]
            margins = {
                "per_token": teacher["teacher_log_prob"] / teacher["tokens"]
                - dsft["teacher_log_prob"] / dsft["tokens"],
                "whole": teacher["teacher_log_prob"] - dsft["teacher_log_prob"],
            }
            one, other = by_model[ours, prompt], by_model[theirs, prompt]
            gains = {f"{key}_gain": other[key] / other[count] - one[key] / one[count] for key, count in GAINS.items()}
            place = {"seed": seed, "prompt_id": prompt, "teacher_tokens": teacher["tokens"]}
            found.append(place | margins | gains)
    return found


def parted(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """A row a tenth of the answers by a margin, the least sure first, with mean gains; prompts are drawn whole."""
    from lightning_dadpo.evaluation.bootstrap import ratio_interval

    ordered, found = sorted(rows, key=lambda row: row[by]), []
    for part in range(PARTS):
        mine = ordered[part * len(ordered) // PARTS : (part + 1) * len(ordered) // PARTS]
        margin = sum(one[by] for one in mine) / len(mine)
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


def correlation(rows: list[dict[str, Any]], by: str, key: str) -> dict[str, float]:
    """Spearman's rank correlation of a margin and a gain, and the same with the length of the teacher's answer held
    fixed (partial correlation of ranks), each with a 95 % bootstrap interval over prompts.
    """
    import numpy as np
    from scipy.stats import spearmanr

    from lightning_dadpo.evaluation.bootstrap import draws, percentile_interval

    prompts = sorted({row["prompt_id"] for row in rows})
    columns = np.array(
        [
            [[row[name] for row in rows if row["prompt_id"] == prompt] for prompt in prompts]
            for name in (by, f"{key}_gain", "teacher_tokens")
        ]
    )
    plain, partial = [], []
    for drawn in draws(len(prompts), 2000, 0):
        ranks = spearmanr(columns[:, drawn].reshape(3, -1), axis=1).statistic
        margin_gain, margin_length, gain_length = ranks[0, 1], ranks[0, 2], ranks[1, 2]
        plain.append(margin_gain)
        rest = (1 - margin_length**2) * (1 - gain_length**2)
        partial.append((margin_gain - margin_length * gain_length) / np.sqrt(rest))
    one, other = percentile_interval(np.array(plain)), percentile_interval(np.array(partial))
    found = {"value": one.value, "low": one.low, "high": one.high}
    return found | {"partial": other.value, "partial_low": other.low, "partial_high": other.high}


def main() -> None:
    """See the module."""
    walks = {seed: kept(f"seed{seed}") for seed in SEEDS}
    rows = answers(walks)
    results = {
        "kind": "teacher_confidence",
        "command": "python experiments/teacher_confidence/collect.py",
        **about(walks[SEEDS[0]]),
        "seeds": list(SEEDS),
        "answers": len(rows),
        "correlations": {by: {key: correlation(rows, by, key) for key in GAINS} for by in MARGINS},
        "rows": {by: parted(rows, by) for by in MARGINS},
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
