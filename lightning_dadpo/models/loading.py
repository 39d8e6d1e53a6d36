"""From a `ModelSpec` to a model and its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from lightning_dadpo.data.artifacts import file_digest
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.spec import ModelSpec, Precision

__all__ = [
    "load_model", "load_frozen", "load_tokenizer", "end_of_turn_ids", "model_digest", "count_parameters", "autocast",
]  # fmt: skip

Model = Any
"""A transformers PreTrainedModel; its stubs are not strict enough to be worth naming."""
Tokenizer = Any


def _arguments(spec: ModelSpec) -> dict[str, Any]:
    arguments: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    if spec.gguf_file is not None:
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise ConfigError("gguf_file needs the package gguf (pip install gguf)") from None
        arguments["gguf_file"] = spec.gguf_file
    return arguments


@contextmanager
def _loading(spec: ModelSpec, what: str) -> Iterator[None]:
    """Transformers' own bars and notes off; its errors as one line that names the model."""
    transformers.utils.logging.disable_progress_bar()
    previous = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(logging.ERROR)
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"model {spec.path!r}: cannot load the {what}: {reason}") from error
    finally:
        transformers.utils.logging.set_verbosity(previous)


def load_model(spec: ModelSpec, precision: Precision = "32-true") -> Model:
    """The causal language model, on the CPU, in eval mode, its weights float32 unless the precision is bf16-true.

    Raises:
        ConfigError: the folder or package is not there.
        DataError: it holds no loadable causal language model.
    """
    arguments = _arguments(spec)
    if spec.gguf_file is not None:
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _loading(spec, "model"):
        return transformers.AutoModelForCausalLM.from_pretrained(
            spec.location(),
            dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32,
            attn_implementation=spec.attention,
            use_safetensors=True if spec.gguf_file is None else None,
            **arguments,
        )


def load_frozen(spec: ModelSpec, precision: Precision, device: torch.device | None = None) -> Model:
    """The model for scoring or sampling: no gradients, eval mode, on the device."""
    model = load_model(spec, precision).requires_grad_(False).eval()
    return model if device is None else model.to(device)


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """The tokenizer that stands beside the model.

    Raises:
        DataError: there is none.
    """
    with _loading(spec, "tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(spec.location(), **_arguments(spec))


def end_of_turn_ids(model: Model, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends a turn: the model's eos list and the tokenizer's eos."""
    listed = model.generation_config.eos_token_id
    ids = set(listed if isinstance(listed, list | tuple) else [listed]) | {tokenizer.eos_token_id}
    return tuple(sorted(int(token) for token in ids if token is not None))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context that a forward pass runs in; the same one that Lightning opens for this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")


def count_parameters(model: nn.Module) -> int:
    """Unique parameters: a tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_digest(spec: ModelSpec) -> str:
    """Digest of what the weights, the config, the tokenizer and the template say; of the name for a hub model."""
    folder = Path(spec.location())
    if not folder.is_dir():
        return sha256(f"{spec.path}@{spec.revision}".encode()).hexdigest()[:16]
    names = ("*.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", spec.gguf_file or "*.gguf")
    files = sorted({path for name in names for path in folder.glob(name)})
    return sha256("".join(file_digest(path) for path in files).encode()).hexdigest()[:16]
