"""Sizes and number formats, of safetensors and of GGUF."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.weights import Weights, read_weights
from tests.reports import example


def test_sizes_are_the_files_own(tmp_path: Path) -> None:
    folder = example.model(tmp_path / "one", 1000, "BF16")
    (folder / "model-2.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + bytes(2000))
    found = read_weights(folder)
    assert found.size == sum(path.stat().st_size for path in folder.iterdir())
    assert found.formats == {"BF16": 2000}
    assert found.words == "16-bit"


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_a_broken_weight_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors: not a safetensors file"):
        read_weights(tmp_path)
    with pytest.raises(DataError, match=r"no \.safetensors files"):
        read_weights(tmp_path / "nowhere")


def test_a_gguf_file_is_measured_itself(tmp_path: Path) -> None:
    """Ten blocks of 32 numbers in 4 bits and ten in 8; its folder's other files are not it."""
    path = example.gguf_model(tmp_path / "small.gguf", 10)
    example.model(tmp_path, 1000)
    found = read_weights(path)
    assert found.size == path.stat().st_size
    assert found.formats == {"Q4_1": 320, "Q8_0": 320}
    assert found.words == "4-bit and 8-bit GGUF"
    assert Weights(1, {"F32": 1, "IQ3_S": 90, "Q4_K": 99}, "GGUF").words == "3-bit and 4-bit GGUF"


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"GGUF" + b"\xff" * 40])
def test_a_broken_gguf_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"small\.gguf: not a GGUF file"):
        read_weights(path)
