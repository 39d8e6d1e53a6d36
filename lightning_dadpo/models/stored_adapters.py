"""An adapter as a checkpoint holds it: which layers it belongs to, and how it becomes part of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.consolidate import read_checkpoint
from lightning_dadpo.models.quantization import round_to_nf4
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec

__all__ = [
    "StoredAdapter",
    "TRAINED",
    "WEIGHTS",
    "target_layers",
    "check_layers",
    "stored_adapter",
    "read_adapter",
    "merge_adapter",
]

STUDENT = "student."
TRAINED = "trained"
"""Its name among peft's adapters."""

WEIGHTS = (f".lora_A.{TRAINED}.weight", f".lora_B.{TRAINED}.weight")
"""What the keys of its weights end with."""


@dataclass(frozen=True)
class StoredAdapter:
    """What a checkpoint of an adapter's training says.

    Attributes:
        base: the model that it was trained on. base_digest: of that model's contents.
        spec: how it was trained.
        weights: by the name of the layer, A [rank, inputs] and B [outputs, rank], float32.
    """

    base: ModelSpec
    base_digest: str
    spec: AdapterSpec
    weights: Mapping[str, tuple[Tensor, Tensor]]


def target_layers(model: Any, wanted: str | Sequence[str], name: str) -> list[str]:
    """Full names of the layers that an adapter stands at, in a model that has none yet.

    Raises:
        ConfigError: a target is the head, or no linear layer; naming the model.
    """
    head = model.get_output_embeddings()
    linear = [full for full, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if wanted == "all-linear":
        return linear
    chosen: set[str] = set()
    for target in wanted:
        found = [full for full, _ in model.named_modules() if full == target or full.endswith(f".{target}")]
        if any(model.get_submodule(full) is head for full in found):
            # log-probs are made inside the head, without its logits: an adapter there would be left out (trap B7)
            raise ConfigError(f"model.adapter.targets: {target!r} is the head of {name!r}; expected layers before it")
        if not found or not set(found) <= set(linear):
            known = sorted({full.rsplit(".", 1)[-1] for full in linear})
            raise ConfigError(f"model.adapter.targets: {target!r} is no linear layer of {name!r}; it has {known}")
        chosen |= set(found)
    return [full for full in linear if full in chosen]


def read_adapter(checkpoint: str) -> StoredAdapter:
    """The adapter in a checkpoint of `dadpo fit`.

    Raises:
        DataError: there is no such checkpoint, or no adapter in it.
    """
    return stored_adapter(read_checkpoint(checkpoint), checkpoint)


def stored_adapter(loaded: Mapping[str, Any], checkpoint: str) -> StoredAdapter:
    """The adapter in a checkpoint that was read.

    Raises:
        DataError: there is none in it.
    """
    said = loaded["dadpo"]
    if said.get("adapter") is None:
        raise DataError(f"{checkpoint}: holds whole weights, expected a checkpoint of a training with model.adapter")
    try:
        base, spec = ModelSpec(**said["student"]), AdapterSpec(**said["adapter"]["settings"])
        digest = str(said["adapter"]["base"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{checkpoint}: dadpo.adapter: expected an adapter's settings and base ({error})") from error
    state = {key.removeprefix(STUDENT): value.float() for key, value in loaded["state_dict"].items()}
    first, second = ({key.removesuffix(end): key for key in state if key.endswith(end)} for end in WEIGHTS)
    if not first or first.keys() != second.keys():
        raise DataError(f"{checkpoint}: expected keys that end with {WEIGHTS[0]} and {WEIGHTS[1]}, one each a layer")
    return StoredAdapter(base, digest, spec, {name: (state[first[name]], state[second[name]]) for name in first})


def check_layers(adapter: StoredAdapter, layers: Mapping[str, Any], checkpoint: str) -> None:
    """Hold an adapter to the layers that it is meant for, name by name and shape by shape.

    Raises:
        DataError: naming the first that does not fit.
    """
    if strange := sorted(layers.keys() ^ adapter.weights.keys()):
        what = "has no adapter" if strange[0] in layers else "is no target in the model"
        raise DataError(f"{checkpoint}: {STUDENT}{strange[0]} {what}")
    rank = adapter.spec.rank
    for name, (a, b) in adapter.weights.items():
        expected = ((rank, layers[name].in_features), (layers[name].out_features, rank))
        if (tuple(a.shape), tuple(b.shape)) != expected:
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}, expected {expected[0]} and {expected[1]}"
            raise DataError(f"{checkpoint}: {STUDENT}{name} has an adapter of shapes {shapes}")


@torch.no_grad()
def merge_adapter(model: Any, adapter: StoredAdapter, checkpoint: str) -> None:
    """Make an adapter part of its base's weights, in float32: W + alpha / rank * B A (arXiv 2106.09685, section 4.1).

    Where the base was held in 4 bits, its weights are first rounded as they were in training, so that the result is
    the model that was trained and not a better base with corrections for a worse one.

    Args:
        model: the base as it was loaded, float32, without adapters.
        adapter: what is merged. checkpoint: where it comes from, for messages.

    Raises:
        ConfigError, DataError: they do not fit.
    """
    names = target_layers(model, adapter.spec.targets, adapter.base.path)
    check_layers(adapter, {name: model.get_submodule(name) for name in names}, checkpoint)
    if adapter.spec.quantize == "nf4":
        round_to_nf4([model.get_submodule(name) for name in target_layers(model, "all-linear", adapter.base.path)])
    for name, (a, b) in adapter.weights.items():
        model.get_submodule(name).weight += adapter.spec.alpha / adapter.spec.rank * (b @ a)
