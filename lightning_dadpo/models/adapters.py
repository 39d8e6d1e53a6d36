"""LoRA adapters (arXiv 2106.09685) on a model in training: W becomes W + alpha / rank * B A, A and B alone are trained.

The layers are peft's, put into the model in place. It stays the transformers model that it was, so whatever calls it
goes on unchanged. Where training goes on from an adapter that was trained before (dSFT's), a frozen copy of that one
stands beside the trained one. With the copy asked, or without a copy none, the model answers as it did before its first
step: so it is its own reference, and no second model is in memory (trap D7).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lightning_dadpo.data.artifacts import file_digest
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.consolidate import checkpoint_files
from lightning_dadpo.models.loading import model_digest
from lightning_dadpo.models.modes import in_eval_mode
from lightning_dadpo.models.sharding import whole_while_written
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.models.stored_adapters import (
    TRAINED,
    WEIGHTS,
    StoredAdapter,
    check_layers,
    read_adapter,
    target_layers,
)

__all__ = ["require_peft", "describe_adapter", "attach_adapter", "as_it_started", "is_trained_weight"]

START = "start"
"""The frozen copy's name among peft's adapters."""


def require_peft() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("model.adapter needs the package peft (pip install 'lightning-dadpo[lora]')") from None
    return peft


def describe_adapter(spec: AdapterSpec, base: ModelSpec) -> dict[str, Any]:
    """What a checkpoint says of an adapter, in plain values: settings, digests of its base and of what it began as."""
    start = None if spec.start is None else [file_digest(file) for file in checkpoint_files(spec.start)]
    return {"settings": asdict(spec), "base": model_digest(base), "start": start}


def attach_adapter(model: Any, spec: AdapterSpec, base: ModelSpec) -> None:
    """Put an adapter into a loaded model, in place; from now on A and B are all that trains.

    A fresh one changes nothing yet (B = 0); its A depends on the run's seed and on nothing that was drawn since. One
    that goes on from `spec.start` begins as that adapter.

    Raises:
        ConfigError: peft is missing, a target is not there, or `spec.start` was trained on another base or otherwise.
        DataError: `spec.start` holds no adapter for these layers.
    """
    peft = require_peft()
    before = None if spec.start is None else _start(spec, base)
    names = target_layers(model, spec.targets, base.path)
    settings = {"r": spec.rank, "lora_alpha": spec.alpha, "init_lora_weights": False}
    # ranks must draw the same, also where loading has drawn on some of them; peft moves what it made to the base
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        config = peft.LoraConfig(target_modules=list(names), lora_dropout=spec.dropout, **settings)
        peft.inject_adapter_in_model(config, model, TRAINED)
        layers = {name: model.get_submodule(name) for name in names}
        torch.default_generator.manual_seed(torch.initial_seed())
        if before is None:
            for layer in layers.values():
                _begin(layer)
        else:
            check_layers(before, layers, str(spec.start))
            for name, layer in layers.items():
                layer.update_layer(START, spec.rank, lora_alpha=spec.alpha, config=peft.LoraConfig(**settings))
                for adapter in (TRAINED, START):
                    _write(layer, adapter, before.weights[name])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{name}{end}" for name in names for end in WEIGHTS}


def _begin(layer: Any) -> None:
    """B = 0, A as a linear layer begins."""
    with whole_while_written([layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight]):
        layer.reset_lora_parameters(TRAINED, True)


@torch.no_grad()
def _write(layer: Any, adapter: str, weights: tuple[Tensor, Tensor]) -> None:
    parts = [part[adapter].weight for part in (layer.lora_A, layer.lora_B)]
    with whole_while_written(parts):
        for part, value in zip(parts, weights, strict=True):
            part.copy_(value)


def _start(spec: AdapterSpec, base: ModelSpec) -> StoredAdapter:
    """The adapter that training goes on from.

    Raises:
        ConfigError: it does not fit; with both values.
    """
    before = read_adapter(str(spec.start))
    digest = model_digest(base)
    if before.base_digest != digest:
        raise ConfigError(
            f"model.adapter.start {spec.start}: was trained on {before.base.path!r} ({before.base_digest}), "
            f"but the student is {base.path!r} ({digest})"
        )
    for field in ("rank", "alpha", "targets", "quantize"):
        was, now = getattr(before.spec, field), getattr(spec, field)
        if was != now:
            raise ConfigError(f"model.adapter.{field} {now}: expected {was}, as in model.adapter.start {spec.start}")
    return before


def is_trained_weight(key: str) -> bool:
    """Whether a key of a state dict is a weight of the trained adapter."""
    return key.endswith(WEIGHTS)


@contextmanager
def as_it_started(model: Any) -> Iterator[None]:
    """Inside the context the model answers as before its first step, in eval mode; behind it all is as it was.

    Which weights are trained does not change inside: FSDP2 asks for it once, and remembers.
    """
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert layers, "the model has no adapter"
    try:
        for layer in layers:
            _ask(layer, [START] if START in layer.lora_A else [])
        with in_eval_mode(model):
            yield
    finally:
        for layer in layers:
            _ask(layer, [TRAINED])


def _ask(layer: Any, adapters: list[str]) -> None:
    layer.set_adapter(
        adapters, inference_mode=True
    )  # or it would set what it is given, and nothing else, to be trained
    layer.set_requires_grad(TRAINED)
