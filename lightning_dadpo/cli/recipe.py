"""What a training recipe comes to, read from its YAML files without building anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_dadpo.cli.experiment import FitRecipe
from lightning_dadpo.errors import ConfigError

__all__ = ["merge", "merged_settings", "strategy_of", "shards_the_student", "SHARDED"]

STRATEGIES = ("one", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")
SHARDED = ("fsdp2", "deepspeed_zero3")
"""Strategies under which no device holds a whole student."""


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both, key by key; `over` wins, but what a key that ends in `+` appends is appended after the other's."""
    merged = dict(under)
    for key, value in over.items():
        if key.endswith("+") and key in merged:
            merged[key] = [*_listed(merged[key]), *_listed(value)]
            continue
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _listed(appended: Any) -> list[Any]:
    """What jsonargparse appends: a list, or one thing alone."""
    return appended if isinstance(appended, list) else [appended]


def merged_settings(recipe: FitRecipe) -> dict[str, Any]:
    """Its YAML files in their order, and its own settings over them."""
    settings: dict[str, Any] = {}
    for file in recipe.configs:
        settings = merge(settings, yaml.safe_load(Path(file).read_text("utf-8")) or {})
    return merge(settings, recipe.settings)


def shards_the_student(settings: dict[str, Any]) -> bool:
    """Whether no device holds a whole student."""
    return _strategy(settings) in SHARDED


def strategy_of(settings: dict[str, Any]) -> tuple[str, int]:
    """The strategy in our files' terms (one, ddp, fsdp2, deepspeed_zero2, deepspeed_zero3), and on how many devices.

    Raises:
        ConfigError: the strategy is none of these, or `devices` is `auto`, which only the machine could answer.
    """
    trainer = settings.get("trainer", {})
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if not isinstance(devices, int):
        raise ConfigError(f"trainer.devices {devices}: expected a number, for the plan to count with")
    found = _strategy(settings) or ("ddp" if devices * nodes > 1 else "one")
    if found not in STRATEGIES:
        raise ConfigError(f"trainer.strategy {found}: expected one of configs/trainer/")
    return found, devices * nodes


def _strategy(settings: dict[str, Any]) -> str | None:
    """The strategy's name; None where Lightning chooses it by the number of devices."""
    strategy = settings.get("trainer", {}).get("strategy", "auto")
    if isinstance(strategy, dict):
        name, stage = strategy["class_path"].rsplit(".", 1)[-1], strategy.get("init_args", {}).get("stage", 2)
    else:
        name, stage = str(strategy), 2
    known = {
        "auto": None,
        "ddp": "ddp",
        "DDPStrategy": "ddp",
        "ModelParallelStrategy": "fsdp2",
        "DeepSpeedStrategy": f"deepspeed_zero{stage}",
        "deepspeed": "deepspeed_zero2",
        "deepspeed_stage_2": "deepspeed_zero2",
        "deepspeed_stage_3": "deepspeed_zero3",
    }
    return known.get(name, name)
