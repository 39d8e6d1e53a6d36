"""A whole experiment small enough for a test: a random teacher, a smaller random student, 12 prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.tiny import tiny_model

QUESTIONS = ("Why?", "Where to?", "Who said so?", "What is a cat?", "How many?", "When?")


def write_prompts(folder: Path) -> dict[str, dict[str, Any]]:
    """Three prompt files: 8 to train on, 3 to validate on, 3 held out."""
    files = {}
    for split, count in (("train", 8), ("validation", 3), ("heldout", 3)):
        rows = [
            {
                "prompt_id": f"{split}-{index}",
                "messages": [{"role": "user", "content": f"{QUESTIONS[index % 6]} {split} {index}"}],
            }
            for index in range(count)
        ]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        files[split] = {"path": str(path)}
    return files


def write_experiment(folder: Path, **changes: Any) -> Path:
    """The experiment's YAML, with a teacher of four layers of which one quarter is to be pruned."""
    teacher = tiny_model(folder / "teacher", layers=4, hidden=32, seed=1)
    recipes = Path(__file__).parents[2] / "configs"
    common = [str(recipes / "trainer" / "default.yaml")]
    preference = str(recipes / "recipes" / "preference.yaml")
    # two micro-batches to a step and several to a split, so that both have bounds to get wrong
    settings = {"trainer": {"accelerator": "cpu"}, "data": {"init_args": {"tokens_per_batch": 900}}}
    experiment = {
        "name": "tiny",
        "folder": str(folder / "run"),
        "teacher": {"path": str(teacher)},
        "prune": {"share": 0.2, "rows": 4},
        "prompts": write_prompts(folder),
        "sampling": {"temperature": 1.0, "max_new_tokens": 160, "seed": 1},
        "batch_size": 8,
        "tokens_per_batch": 900,
        "keep_cut": True,
        "dsft": {"configs": [*common, str(recipes / "recipes" / "dsft.yaml")], "settings": settings},
        "objectives": {
            name: {"configs": [*common, str(recipes / "loss" / f"{loss}.yaml"), preference], "settings": settings}
            for name, loss in (("ddpo", "dpo"), ("dadpo", "dadpo"))
        },
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment | changes, sort_keys=False), "utf-8")
    return path
