"""The header of a safetensors file is read without its data, and flaws are named."""

import json
import struct
from pathlib import Path

import pytest

from granite_demo.models.safetensors_header import find_flaw, read_tensors
from tests.fakehub import safetensors

WEIGHTS = "model.safetensors"


def header(value: object) -> bytes:
    text = json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("data", "flaw"),
    [
        (safetensors(1000), None),
        (header({"__metadata__": {"format": "pt"}}), None),
        (safetensors(1000)[:-1], "instead of"),
        (safetensors(1000) + b"x", "instead of"),
        (b"", "is empty"),
        (b"short", "no safetensors header"),
        (struct.pack("<Q", 2**63) + b"{}", "no safetensors header"),
        (struct.pack("<Q", 2) + b"{]", "unreadable"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "unreadable"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (header([]), "unreadable"),
        (header({"a": {}}), "unreadable"),
        (header({"a": {"data_offsets": [0, "x"]}}), "unreadable"),
    ],
)
def test_flaws_of_safetensors_files(tmp_path: Path, data: bytes, flaw: str | None) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(data)
    found = find_flaw(path)
    assert found is None if flaw is None else flaw in (found or "")


def test_a_missing_safetensors_file_is_a_flaw(tmp_path: Path) -> None:
    assert find_flaw(tmp_path / WEIGHTS) == "is missing"


def test_a_tensor_has_its_type_shape_and_bytes(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(safetensors(1000))
    tensor = read_tensors(tmp_path / WEIGHTS)["weight"]
    assert (tensor.dtype, tensor.shape, tensor.size) == ("U8", (1000,), 1000)
