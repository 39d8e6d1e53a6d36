"""Sizes and number formats, of safetensors and of GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.gguf_header import gguf_tensors
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


def gguf_with_everything(path: Path, order: Any) -> Path:
    """One value of each type, lists of numbers, truths, words and lists, and tensors of one to three dimensions."""
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    for kind, value in {
        "uint8": 1, "int8": -1, "uint16": 2, "int16": -2, "uint32": 3, "int32": -3, "float32": 0.5, "bool": True,
        "string": "a word", "uint64": 4, "int64": -4, "float64": 0.25,
    }.items():  # fmt: skip
        getattr(writer, f"add_{kind}")(f"any.{kind}", value)
    for name, values in {
        "numbers": [1, 2, 3], "halves": [0.5, 1.5], "truths": [True, False, True], "words": ["", "one", "zwölf"],
        "lists": [["a", "bc"], ["d"]],
    }.items():  # fmt: skip
        writer.add_array(f"any.{name}", values)
    writer.add_tensor("one", np.zeros(7, np.float32))
    writer.add_tensor("two", np.zeros((3, 5), np.float16))
    writer.add_tensor("three", np.zeros((2, 3, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("order", list(gguf.GGUFEndian))
def test_a_gguf_header_says_what_the_formats_own_package_reads_in_it(tmp_path: Path, order: Any) -> None:
    path = gguf_with_everything(tmp_path / "every.gguf", order)
    expected = [(int(one.tensor_type), int(one.n_elements)) for one in gguf.GGUFReader(path).tensors]
    assert list(gguf_tensors(path)) == expected
    assert read_weights(path).formats == {"F32": 7, "F16": 15, "Q8_0": 2 * 3 * 32}


def test_no_broken_gguf_header_is_more_than_a_broken_file(tmp_path: Path) -> None:
    """Cut anywhere, and any byte at its largest: another number at most, never another error."""
    whole = gguf_with_everything(tmp_path / "every.gguf", gguf.GGUFEndian.LITTLE).read_bytes()
    places, path = range(0, whole.index(b"three") + 40, 7), tmp_path / "broken.gguf"
    refused = 0
    for at in places:
        for content in (whole[:at], whole[:at] + b"\xff" + whole[at + 1 :]):
            path.write_bytes(content)
            try:
                read_weights(path)
            except DataError:
                refused += 1
    assert refused > len(places)  # every cut, and more


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"GGUF" + b"\xff" * 40])
def test_a_broken_gguf_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"small\.gguf: not a GGUF file"):
        read_weights(path)
