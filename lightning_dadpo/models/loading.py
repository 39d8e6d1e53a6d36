"""From a `ModelSpec` to a model and its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from lightning_dadpo.data.artifacts import file_digest
from lightning_dadpo.data.ranks import ranks_here
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.attention import TOKEN_TREES
from lightning_dadpo.models.log_probs import Kernels, prepare
from lightning_dadpo.models.quantization import (
    quantization_arguments,
    require_bitsandbytes,
    round_weights_alone,
    warn_of_noise,
    whole_size,
)
from lightning_dadpo.models.spec import ModelSpec, Precision

__all__ = [
    "load_model", "load_frozen", "load_tokenizer", "model_without_weights", "end_of_turn_ids", "model_digest",
    "count_parameters", "autocast", "quietly_loading", "refuse_gaps",
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
def quietly_loading(spec: ModelSpec, what: str) -> Iterator[None]:
    """Transformers' own bars and notes off; its errors as one line that names the model."""
    transformers.utils.logging.disable_progress_bar()
    previous = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(logging.ERROR)
    try:
        yield
    except ConfigError:
        raise
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise DataError(f"model {spec.path!r}: its weights do not have the shapes that its config says") from error
    except (OSError, ValueError, KeyError, TypeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise DataError(f"model {spec.path!r}: cannot load the {what}: {_reason(spec, error)}") from error
    finally:
        transformers.utils.logging.set_verbosity(previous)


def _reason(spec: ModelSpec, error: Exception) -> str:
    """The error's own lines as one; what the folder lacks where transformers' words mislead."""
    folder = Path(spec.location())
    if folder.is_dir() and spec.gguf_file is None:
        names = sorted(path.name for path in folder.iterdir())
        gguf = [name for name in names if name.endswith(".gguf")]
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        if "config.json" not in names:
            return f"no config.json there{f'; name its gguf_file: {gguf[0]}' if gguf else ''}"
        if pickled and not any(name.endswith(".safetensors") for name in names):
            return f"{pickled[0]} holds pickled weights, which can run code; expected safetensors"
    said = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in said:
        return "it brings Python code of its own, which is not run unless trust_remote_code is set"
    return said if len(said) <= 300 else said[:300] + " ..."


def load_model(spec: ModelSpec, precision: Precision = "32-true", device: torch.device | None = None) -> Model:
    """The causal language model, on the CPU, in eval mode, its weights float32 unless the precision is bf16-true.

    Args:
        spec: which model. precision: see above.
        device: where a quantised model is rounded, and stays.

    Raises:
        ConfigError: the folder or package is not there, or quantising needs a package that is not.
        DataError: it holds no loadable causal language model, or not all of its weights.
    """
    arguments = _arguments(spec)
    if spec.gguf_file is not None:
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    if spec.quantize is not None:
        require_bitsandbytes(f"model {spec.path!r}: quantize {spec.quantize}")
        arguments |= quantization_arguments(spec.quantize, device or torch.device("cpu"), dtype)
    with quietly_loading(spec, "model"):
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            spec.location(),
            dtype=dtype,
            attn_implementation=TOKEN_TREES,
            use_safetensors=True if spec.gguf_file is None else None,
            output_loading_info=True,
            **arguments,
        )
    refuse_gaps(spec, model, report)
    if spec.quantize == "int8":
        round_weights_alone(model)
    prepare(model, Kernels(spec.attention, spec.chunk_tokens))
    return model


def refuse_gaps(spec: ModelSpec, model: Model, report: Mapping[str, Any]) -> None:
    """Transformers fills what the file lacks with random weights, and skips layers that the config does not count.

    Raises:
        DataError: naming the first weight, or the number of layers.
    """
    if missing := sorted(report["missing_keys"]):
        raise DataError(
            f"model {spec.path!r}: its files lack {missing[0]} and {len(missing) - 1} more weights of its config"
        )
    layers = getattr(model.config, "num_hidden_layers", None)
    if any(name.startswith(f"model.layers.{layers}.") for name in report["unexpected_keys"]):
        raise DataError(f"model {spec.path!r}: its files hold more layers than the {layers} that its config says")


def model_without_weights(spec: ModelSpec, device: str = "meta") -> Model:
    """The model's modules as its config says, for weights from elsewhere; on the meta device they take no memory.

    Raises:
        ConfigError, DataError: as `load_model`.
    """
    arguments = _arguments(spec)
    trusted = arguments["trust_remote_code"]
    with quietly_loading(spec, "config"):
        config = transformers.AutoConfig.from_pretrained(spec.location(), **arguments)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation=TOKEN_TREES, trust_remote_code=trusted
            )
        if spec.gguf_file is None:
            with suppress(OSError):  # no generation_config.json: the ids of config.json stand
                model.generation_config = transformers.GenerationConfig.from_pretrained(spec.location())
    return model


def load_frozen(spec: ModelSpec, precision: Precision, device: torch.device | None = None) -> Model:
    """The model for scoring or sampling: no gradients, eval mode, on the device."""
    if ranks_here().leads:
        warn_of_noise(spec)
    model = load_model(spec, precision, device).requires_grad_(False).eval()
    return model if device is None or spec.quantize is not None else model.to(device)


def load_tokenizer(spec: ModelSpec, config: Any = None) -> Tokenizer:
    """The tokenizer that stands beside the model.

    Args:
        spec: which model.
        config: the loaded model's, where there is one. Without it transformers reads a GGUF file's header once more,
            for seconds, only to learn which tokenizer the model has.

    Raises:
        DataError: there is none.
    """
    with quietly_loading(spec, "tokenizer"):
        if config is not None and _holds_its_tokenizer(spec, config):
            tokenizer = transformers.TokenizersBackend.from_pretrained(spec.location(), gguf_file=spec.gguf_file)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(spec.location(), **_arguments(spec))
    if spec.chat_template is not None:
        tokenizer.chat_template = Path(spec.chat_template).read_text("utf-8")
    return tokenizer


def _holds_its_tokenizer(spec: ModelSpec, config: Any) -> bool:
    """Whether a GGUF file alone says what the tokenizer is: no file beside it does, nor a class of the architecture."""
    folder = Path(spec.location())
    beside = not folder.is_dir() or (folder / "tokenizer_config.json").exists()
    return spec.gguf_file is not None and not beside and type(config) not in transformers.TOKENIZER_MAPPING


def end_of_turn_ids(model: Model, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends a turn: the model's eos list and the tokenizer's eos."""
    listed = model.generation_config.eos_token_id
    ids = set(listed if isinstance(listed, list | tuple) else [listed]) | {tokenizer.eos_token_id}
    return tuple(sorted(int(token) for token in ids if token is not None))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context that a forward pass runs in; the same one that Lightning opens for this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")


def count_parameters(model: nn.Module) -> int:
    """Unique parameters: a tied head counts once, a quantised weight as what it stands for."""
    return sum(whole_size(parameter) for parameter in model.parameters())


def model_digest(spec: ModelSpec) -> str:
    """Digest of what the weights, the config, the tokenizer and the template say; of the name for a hub model.

    A quantised model is another one than the whole one (traps B8, C1).
    """
    folder = Path(spec.location())
    template = "" if spec.chat_template is None else Path(spec.chat_template).read_text("utf-8")
    template += "" if spec.quantize is None else f"\0{spec.quantize}"
    if not folder.is_dir():
        return sha256(f"{spec.path}@{spec.revision}/{spec.gguf_file}{template}".encode()).hexdigest()[:16]
    # generation_config.json lists the ids that end a turn; older folders keep the template in tokenizer_config.json
    names = ("*.safetensors", "*config.json", "tokenizer*", "vocab*", "merges.txt", "chat_template*", "*.gguf")
    files = sorted({path for name in names for path in folder.glob(name) if path.is_file()})
    said = "".join(file_digest(path) for path in files) + str(spec.gguf_file) + template
    return sha256(said.encode()).hexdigest()[:16]
