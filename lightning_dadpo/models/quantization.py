"""A frozen base in 4 bits (QLoRA, arXiv 2305.14314): NF4 numbers with doubly quantised constants, by bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import nn

from lightning_dadpo.errors import ConfigError

__all__ = ["require_nf4", "nf4_arguments", "round_to_nf4"]


def require_nf4(device: torch.device) -> None:
    """Refuse at once what could not work.

    Raises:
        ConfigError: the device is no CUDA GPU, or bitsandbytes is not installed.
    """
    if device.type != "cuda":
        raise ConfigError(f"model.adapter.quantize nf4: needs a CUDA GPU, this is {device.type}; leave it out")
    _bitsandbytes()


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError(
            "model.adapter.quantize nf4 needs the package bitsandbytes (pip install 'lightning-dadpo[qlora]')"
        ) from None
    return bitsandbytes


def nf4_arguments(device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given so that every linear layer but the head is held in 4 bits on the device.

    Products are float32, under bf16-mixed bfloat16 by autocast: as in every other model here.
    """
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return {"quantization_config": config, "device_map": {"": device}}


@torch.no_grad()
def round_to_nf4(layers: Iterable[nn.Linear]) -> None:
    """Give linear layers the weights that they have behind NF4 and back, in place.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    functional = _bitsandbytes().functional
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for layer in layers:
        weight = layer.weight.to(device)
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        layer.weight.copy_(functional.dequantize_4bit(packed, state))
