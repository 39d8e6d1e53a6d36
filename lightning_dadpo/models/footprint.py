"""What a model costs in memory and in floating-point operations, counted on tensors that have no storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_dadpo.data.packing import pack
from lightning_dadpo.logprobs import default_chunk_tokens
from lightning_dadpo.models.attention import masked_rows
from lightning_dadpo.models.loading import autocast, model_without_weights
from lightning_dadpo.models.log_probs import Kernels, model_log_probs, prepare
from lightning_dadpo.models.pruning import decoder_layers
from lightning_dadpo.models.quantization import quantized_bytes
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec, Precision
from lightning_dadpo.models.stored_adapters import target_layers
from lightning_dadpo.types import PackedBatch

__all__ = ["Footprint", "footprint"]


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model, and of what one micro-batch of preference pairs leaves behind in it.

    Attributes:
        parameters: unique ones; a tied head counts once.
        layers: decoder layers.
        layer: parameters of the largest decoder layer.
        matrices: parameters of the matrices that every token is multiplied with, the head left out.
        head: parameters of the output head.
        saved_bytes: what autograd keeps of the micro-batch for the backward pass, the head's part included.
        chunk_bytes: float32 logits of one chunk of the head.
        adapter: weights of the adapter that is trained in place of the model's own; 0 where there is none.
        rounded: parameters of linear layers that are held in 8 or 4 bits.
        rounded_bytes: of those, and of the largest of their matrices, which is made whole while it multiplies.
    """

    parameters: int
    layers: int
    layer: int
    matrices: int
    head: int
    saved_bytes: int
    chunk_bytes: int
    adapter: int = 0
    rounded: int = 0
    rounded_bytes: float = 0.0

    @property
    def trained(self) -> int:
        """Weights that have gradients."""
        return self.adapter or self.parameters

    def weight_bytes(self, width: int) -> float:
        """Of all weights.

        Args:
            width: bytes of one that is not rounded; an adapter's have four.
        """
        return width * (self.parameters - self.rounded) + self.rounded_bytes + 4.0 * self.adapter


def footprint(
    spec: ModelSpec,
    lengths: tuple[int, int, int],
    tokens_per_batch: int,
    precision: Precision,
    device: torch.device,
    remove_share: float = 0.0,
    adapter: AdapterSpec | None = None,
) -> Footprint:
    """Count a model from its config alone.

    Args:
        spec: the model; of its folder only config.json is read.
        lengths: tokens of a prompt, a chosen and a rejected response; a micro-batch holds as many such pairs as
            its budget allows, one at least.
        tokens_per_batch: that budget.
        precision: of the forward pass.
        device: that it will run on.
        remove_share: share of the parameters that pruning will take out in whole layers.
        adapter: that is trained on it.

    Raises:
        ConfigError, DataError: the config cannot be read, or the adapter finds no layer.
    """
    batch = _micro_batch(lengths, tokens_per_batch, device)
    # real: how wide its rows are depends on what is in them
    layout = masked_rows(batch).to(torch.float32 if precision == "32-true" else torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model_without_weights(spec, device.type).train()
        layers = decoder_layers(model, spec.path)
        total = _unique(model)
        while remove_share and total - _unique(model) < remove_share * total and len(layers) > 1:
            del layers[-1]  # which one makes no difference to what is counted
        model.config.num_hidden_layers = len(layers)
        parameters, layer = _unique(model), max(_unique(layer) for layer in layers)
        linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
        matrices = sum(module.weight.numel() for module in linear)
        kind = spec.quantize if adapter is None else adapter.quantize
        rounded = 0.0 if kind is None else quantized_bytes(kind, linear) + 4.0 * max(m.weight.numel() for m in linear)
        if adapter is not None:
            _attach(model, adapter, spec.path)
        prepare(model, Kernels(spec.attention, spec.chunk_tokens))
        head = model.get_output_embeddings()
        chunk = min(spec.chunk_tokens or default_chunk_tokens(head.out_features, device), len(batch.targets))
        with _counted(model) as sizes, autocast(precision, device):
            model_log_probs(model, batch, layout).total.sum()
        return Footprint(
            parameters=parameters,
            layers=len(layers),
            layer=layer,
            matrices=matrices,
            head=head.weight.numel(),
            saved_bytes=sum(sizes.values()),
            chunk_bytes=4 * chunk * head.out_features,
            adapter=_unique(model) - parameters,
            rounded=0 if kind is None else matrices,
            rounded_bytes=rounded,
        )


class _Adapted(nn.Module):
    """A linear layer under LoRA, as peft computes it; peft itself cannot be put into tensors without storage."""

    def __init__(self, layer: nn.Linear, adapter: AdapterSpec) -> None:
        super().__init__()
        self.layer, self.dropout = layer.requires_grad_(False), nn.Dropout(adapter.dropout)
        self.down = nn.Linear(layer.in_features, adapter.rank, bias=False)
        self.up = nn.Linear(adapter.rank, layer.out_features, bias=False)
        self.scale = adapter.alpha / adapter.rank

    def forward(self, states: Tensor) -> Tensor:
        answer: Tensor = self.layer(states) + self.up(self.down(self.dropout(states))) * self.scale
        return answer


def _attach(model: nn.Module, adapter: AdapterSpec, path: str) -> None:
    model.requires_grad_(False)
    for name in target_layers(model, adapter.targets, path):
        parent, _, own = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), own, _Adapted(layer, adapter))


def _micro_batch(lengths: tuple[int, int, int], budget: int, device: torch.device) -> PackedBatch:
    """As many pairs of these lengths as the budget allows, one at least."""
    prompt, chosen, rejected = lengths
    # different first tokens, so that responses share nothing but the prompt, and prompts nothing at all
    responses = [[2] + [1] * (chosen - 1), [3] + [1] * (rejected - 1)]
    pairs = max(1, budget // (prompt + chosen + rejected - 2))
    prompts = [[4 + number] + [1] * (prompt - 1) for number in range(pairs)]
    return pack(prompts, [responses] * pairs).to(device)


def _unique(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps inside the context, weights left out; each storage once."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, or a storage's address could be given to the next one

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in sizes:
            sizes[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
