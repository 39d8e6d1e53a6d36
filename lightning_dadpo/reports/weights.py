"""What a model's weight files weigh and how they hold their numbers, from the files themselves; nothing is loaded."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.gguf_header import gguf_tensors

__all__ = ["Weights", "read_weights"]

HEADER_LIMIT = 1 << 27
"""No header of a model is longer; a longer one is a broken file."""
FORMATS = {
    "F64": "64-bit", "F32": "32-bit", "F16": "16-bit", "BF16": "16-bit", "F8_E4M3": "8-bit", "F8_E5M2": "8-bit",
    "I8": "8-bit", "U8": "8-bit",
}  # fmt: skip
BLOCKS = re.compile(r"I?Q(\d)_")
"""GGUF's names of its blocks, Q4_1 or IQ3_S, say how many bits a number has before what its block shares."""


@dataclass(frozen=True)
class Weights:
    """The weight files of a model.

    Attributes:
        size: bytes on disk of all of them.
        formats: numbers stored, by the format's name in the files (F32, BF16, Q4_1 ...).
        container: "GGUF", or nothing for safetensors.
    """

    size: int
    formats: dict[str, int]
    container: str = ""

    @property
    def words(self) -> str:
        """The formats that hold at least a hundredth of the numbers: `32-bit`, `4-bit and 8-bit GGUF`."""
        total = sum(self.formats.values())
        main = [name for name, count in self.formats.items() if count * 100 >= total]
        return f"{' and '.join(sorted({_bits(name) for name in main}, key=_size))} {self.container}".rstrip()


def _bits(name: str) -> str:
    block = BLOCKS.match(name)
    return f"{block[1]}-bit" if block else FORMATS.get(name, name)


def _size(words: str) -> tuple[int, str]:
    bits = words.partition("-")[0]
    return (int(bits) if bits.isdecimal() else 0, words)


def read_weights(place: Path) -> Weights:
    """Size and number formats of a GGUF file, or of a folder's safetensors files.

    Raises:
        DataError: the folder has no safetensors files, a file has no readable header, or gguf is not installed.
    """
    if place.suffix == ".gguf":
        return _read_gguf(place)
    files = sorted(place.glob("*.safetensors"))
    if not files:
        raise DataError(f"{place}: no .safetensors files, so its size is not known")
    formats: Counter[str] = Counter()
    for path in files:
        for tensor in _header(path).values():
            formats[str(tensor["dtype"])] += math.prod(tensor["shape"])
    return Weights(sum(path.stat().st_size for path in files), dict(formats))


def _read_gguf(path: Path) -> Weights:
    try:
        from gguf import GGMLQuantizationType
    except ImportError:
        raise DataError(f"{path}: its formats are read by the package gguf (pip install gguf)") from None
    formats: Counter[str] = Counter()
    try:
        for kind, numbers in gguf_tensors(path):
            formats[GGMLQuantizationType(kind).name] += numbers
    except ValueError:
        raise DataError(f"{path}: not a GGUF file") from None
    return Weights(path.stat().st_size, dict(formats), "GGUF")


def _header(path: Path) -> dict[str, Any]:
    """The tensors that a safetensors file lists: eight bytes of length, then JSON (the format's own description)."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            found: Any = json.loads(file.read(length)) if length <= HEADER_LIMIT else {}
            tensors = {name: one for name, one in found.items() if name != "__metadata__"}
            numbers = [math.prod(one["shape"]) for one in tensors.values() if isinstance(one["dtype"], str)]
            if not numbers:
                raise ValueError("no tensors")
        except (struct.error, ValueError, AttributeError, KeyError, TypeError):
            raise DataError(f"{path}: not a safetensors file") from None
    return tensors
