"""The tensors that a GGUF file lists, straight from its header.

The package gguf makes an object of every token of the vocabulary on the way there, which takes seconds.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["gguf_tensors"]

STRING, ARRAY = 8, 9
BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Length of a value by its type: integers of 8, 16 and 32 bits, float, bool; integers of 64 bits, double."""
VERSIONS = (2, 3)


def gguf_tensors(path: Path) -> Iterator[tuple[int, int]]:
    """Number format, as the format's own number for it, and numbers of each tensor.

    Source: the format's description (ggml, docs/gguf.md), versions 2 and 3, of either byte order.

    Raises:
        ValueError: the file is none.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("no GGUF file")
        try:
            yield from _Header(file).tensors()
        except struct.error:
            raise ValueError("the header ends too early") from None


class _Header:
    """What follows the magic word."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.order = file, "<"
        self.length = os.fstat(file.fileno()).st_size
        (version,) = self._take("I")
        if version > 0xFFFF:  # its low half is empty when the bytes stand the other way round
            self.order = ">"
            (version,) = struct.unpack(">I", struct.pack("<I", version))
        if version not in VERSIONS:
            raise ValueError(f"version {version}, expected one of {VERSIONS}")
        self.num_tensors, self.num_values = self._take("QQ")

    def tensors(self) -> Iterator[tuple[int, int]]:
        for _ in range(self.num_values):
            self._pass_string()
            self._pass(*self._take("I"))
        for _ in range(self.num_tensors):
            self._pass_string()
            (dimensions,) = self._take("I")
            shape = self._take(f"{dimensions}Q")
            kind, _ = self._take("IQ")
            yield kind, math.prod(shape)

    def _take(self, form: str) -> tuple[int, ...]:
        form = self.order + form
        return struct.unpack(form, self.file.read(min(struct.calcsize(form), self.length)))

    def _pass_string(self) -> None:
        self._pass_bytes(*self._take("Q"))

    def _pass(self, kind: int) -> None:
        """One value of the metadata."""
        if kind == STRING:
            self._pass_string()
        elif kind == ARRAY:
            inner, length = self._take("IQ")
            if inner in BYTES:
                self._pass_bytes(BYTES[inner] * length)
            else:
                for _ in range(length):
                    self._pass(inner)
        elif kind in BYTES:
            self._pass_bytes(BYTES[kind])
        else:
            raise ValueError(f"a value of type {kind}")

    def _pass_bytes(self, length: int) -> None:
        if length > self.length:
            raise ValueError(f"{length} bytes in a file of {self.length}")
        self.file.seek(length, 1)
