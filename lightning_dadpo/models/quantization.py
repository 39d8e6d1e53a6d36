"""Models whose linear layers are held in 8 or 4 bits, by bitsandbytes.

Weights alone are rounded. int8 is a whole number between -127 and 127 times a 127th of the largest weight of its row
(arXiv 2208.07339). nf4 is one of 16 numbers times the largest weight of its block of 64, where those are rounded too
(arXiv 2305.14314). Embeddings, norms and the head stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.spec import ModelSpec, Quantization

__all__ = [
    "NF4_NOISE", "require_bitsandbytes", "quantization_arguments", "round_weights_alone",
    "warn_of_noise", "round_to_nf4", "quantized_bytes", "whole_size",
]  # fmt: skip

NF4_NOISE = "9.96 nats [8.18, 11.71], int8 by 0.67"
"""By how much D of a pair changes against 16-bit weights, root mean square; from experiments/quantisation."""


def require_bitsandbytes(setting: str) -> Any:
    """The package.

    Args:
        setting: what asks for it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import bitsandbytes  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError(
            f"{setting} needs the package bitsandbytes (pip install 'lightning-dadpo[quantize]')"
        ) from None
    return bitsandbytes


def quantization_arguments(kind: Quantization, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given so that every linear layer but the head is rounded while it is read.

    Args:
        kind: to what. device: where the model will stay. dtype: of everything else, and of products.
    """
    settings: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        settings["bnb_4bit_compute_dtype"] = dtype
    return {"quantization_config": transformers.BitsAndBytesConfig(**settings), "device_map": {"": device}}


def round_weights_alone(model: nn.Module) -> None:
    """Let 8-bit layers multiply with what their weights stand for, in place.

    bitsandbytes' own product also rounds each token's activations, and leaves out features that are large anywhere in
    the batch: a response's log-prob would depend on its neighbours there, by nats.
    """
    layer_type = require_bitsandbytes("quantize int8").nn.Linear8bitLt
    for layer in model.modules():
        if isinstance(layer, layer_type):
            layer.forward = _product(layer)


def _product(layer: Any) -> Any:
    def forward(states: Tensor) -> Tensor:
        steps = (layer.weight.SCB / 127).to(states.dtype)
        return nn.functional.linear(states, layer.weight.data.to(states.dtype) * steps[:, None], layer.bias)

    return forward


def warn_of_noise(spec: ModelSpec) -> None:
    """Say what 4 bits cost a preference's margin, as far as it was measured."""
    if spec.quantize == "nf4":
        print(
            f"warning: {spec.path!r} in 4 bits: on SmolLM2-135M-Instruct that moved the difference between the two "
            f"responses of a pair by {NF4_NOISE}, against 16 bits (experiments/quantisation)",
            file=sys.stderr,
        )


@torch.no_grad()
def round_to_nf4(layers: Iterable[nn.Linear]) -> None:
    """Give linear layers the weights that they have behind NF4 and back, in place.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    functional = require_bitsandbytes("model.adapter.quantize nf4").functional
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for layer in layers:
        weight = layer.weight.to(device)
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        layer.weight.copy_(functional.dequantize_4bit(packed, state))


def whole_size(parameter: nn.Parameter) -> int:
    """Weights in a parameter: 4-bit ones are packed, two to a byte."""
    return int(torch.Size(getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)).numel())


def quantized_bytes(kind: Quantization, layers: Iterable[nn.Linear]) -> float:
    """Bytes of linear layers with their constants: one float32 a row, or a byte for 64 and a float32 for 16,384."""
    if kind == "int8":
        return float(sum(layer.weight.numel() + 4 * layer.out_features for layer in layers))
    return sum(layer.weight.numel() for layer in layers) * (1 / 2 + 1 / 64 + 4 / (64 * 256))
