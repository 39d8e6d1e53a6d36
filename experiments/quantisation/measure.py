"""How far rounded weights move a teacher's log-probs; README.md says what is claimed.

    python experiments/quantisation/measure.py TEACHER PAIRS       # folders of a finished `make demo`: results.json
    python experiments/tables.py write                             # the README

TEACHER is a model's folder (runs/demo/teacher-*), PAIRS one of its pairs artefacts (runs/demo/pairs-*).
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HELD = ("float32", "bfloat16", "int8", "nf4")
"""Ways to hold the same weights; products are float32 in all of them."""
COMPARED = [("bfloat16", "float32"), ("int8", "float32"), ("nf4", "float32"), ("int8", "bfloat16"), ("nf4", "bfloat16")]
PAIRS = 64


@dataclass(frozen=True)
class Scored:
    """What one way to hold the weights gives to every pair: nats and tokens of each side."""

    chosen: Sequence[float]
    rejected: Sequence[float]
    tokens: Sequence[int]

    @property
    def gaps(self) -> list[float]:
        """D of each pair."""
        return [chosen - rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True)]

    @property
    def sums(self) -> list[float]:
        """Nats of both responses of each pair."""
        return [chosen + rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True)]


def compare(held: Scored, whole: Scored) -> dict[str, Any]:
    """What holding the weights in one way instead of another changes; 95 % bootstrap intervals over pairs.

    Returns:
        noise: root mean square change of D, nats a pair. spread: standard deviation of D itself, nats.
        turned: share of pairs in which the other response is preferred. per_token: mean change of log-prob, nats.
    """
    from lightning_dadpo.evaluation.bootstrap import mean_interval, ratio_interval

    gaps = list(zip(held.gaps, whole.gaps, strict=True))
    squared = asdict(mean_interval([(one - other) ** 2 for one, other in gaps]))
    moved = [one - other for one, other in zip(held.sums, whole.sums, strict=True)]
    mean = sum(whole.gaps) / len(gaps)
    return {
        "noise": {name: sqrt(value) for name, value in squared.items()},
        "spread": sqrt(sum((gap - mean) ** 2 for gap in whole.gaps) / len(gaps)),
        "turned": asdict(mean_interval([float((one > 0) != (other > 0)) for one, other in gaps])),
        "per_token": asdict(ratio_interval(moved, held.tokens)),
    }


def scored(teacher: str, pairs: Any, held: str) -> tuple[Scored, float]:
    """Every pair by one way to hold the weights, and the seconds that it took."""
    import torch

    from lightning_dadpo.models.loading import load_frozen
    from lightning_dadpo.models.spec import ModelSpec
    from lightning_dadpo.scoring.audit import scores_of
    from lightning_dadpo.scoring.live import LiveScorer

    quantize: Any = held if held in ("int8", "nf4") else None
    model = load_frozen(ModelSpec(teacher, quantize=quantize), "32-true", torch.device("cpu"))
    if held == "bfloat16":
        for parameter in model.parameters():  # and no buffer: rotary frequencies stay float32 in every format
            parameter.copy_(parameter.bfloat16())
    start = time.monotonic()
    with torch.no_grad():
        found = scores_of(LiveScorer(model), pairs)
    seconds = time.monotonic() - start
    columns = [side.total.double().tolist() for side in (found.chosen, found.rejected)]
    tokens = (found.chosen.num_tokens + found.rejected.num_tokens).tolist()
    return Scored(columns[0], columns[1], tokens), seconds


def main(arguments: list[str]) -> None:
    """See the module."""
    if len(arguments) != 2:
        sys.exit(__doc__)
    from experiments.hardware import processor
    from lightning_dadpo.data.row_store import RowStore
    from lightning_dadpo.data.rows import PairRow

    teacher, folder = arguments
    rows = RowStore(Path(folder) / "rows.jsonl", PairRow)
    pairs = rows.take(range(min(PAIRS, len(rows))))
    found = {name: scored(teacher, pairs, name) for name in HELD}
    results = {
        "kind": "quantisation",
        "command": "python experiments/quantisation/measure.py runs/demo/teacher-* runs/demo/pairs-*",
        "hardware": processor(),
        "versions": {name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        "model": "SmolLM2-135M-Instruct",
        "pairs": len(pairs),
        "tokens": sum(found["float32"][0].tokens),
        "seconds": {name: round(seconds, 1) for name, (_, seconds) in found.items()},
        "rows": [
            {"held": held, "against": whole} | compare(found[held][0], found[whole][0]) for held, whole in COMPARED
        ],
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(json.dumps(results["rows"], indent=1))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
