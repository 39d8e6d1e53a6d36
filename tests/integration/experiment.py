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


def _trainer(recipes: Path, folder: Path) -> Path:
    """The shared trainer, with a checkpoint behind every step."""
    text = (recipes / "trainer" / "default.yaml").read_text("utf-8")
    path = folder / "trainer.yaml"
    path.write_text(text.replace("every_n_steps: 20", "every_n_steps: 1"), "utf-8")
    return path


def _settings(rows: str, **trainer: Any) -> dict[str, Any]:
    """Several micro-batches to a step and to a split, so that all have bounds."""
    data = {"tokens_per_batch": 400, f"{rows}_per_step": 3}
    return {"trainer": {"accelerator": "cpu", **trainer}, "data": {"init_args": data}}


def write_experiment(folder: Path, **changes: Any) -> Path:
    """The experiment's YAML, with a teacher of four layers of which one quarter is to be pruned."""
    teacher = tiny_model(folder / "teacher", layers=4, hidden=32, seed=1)
    recipes = Path(__file__).parents[2] / "configs"
    common = [str(_trainer(recipes, folder))]
    preference, best = str(recipes / "recipes" / "preference.yaml"), str(recipes / "trainer" / "select_best.yaml")
    experiment = {
        "name": "tiny",
        "folder": str(folder / "run"),
        "teacher": {"path": str(teacher)},
        "prune": {"share": 0.2, "rows": 4},
        "prompts": write_prompts(folder),
        "sampling": {"temperature": 1.0, "max_new_tokens": 60, "seed": 1},
        "batch_size": 8,
        "tokens_per_batch": 400,
        "keep_cut": True,
        "dsft": {
            "configs": [*common, str(recipes / "recipes" / "dsft.yaml")],
            "settings": _settings("responses", max_epochs=2),
        },
        "objectives": {
            "ddpo": {
                "configs": [*common, best, str(recipes / "loss" / "dpo.yaml"), preference],
                "settings": _settings("pairs", val_check_interval=0.5),
                "checkpoint": "best",
            },
            "dadpo": {
                "configs": [*common, str(recipes / "loss" / "dadpo.yaml"), preference],
                "settings": _settings("pairs"),
            },
        },
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment | changes, sort_keys=False), "utf-8")
    return path
