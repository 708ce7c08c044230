"""Reads the header of a safetensors file: https://github.com/huggingface/safetensors#format. Imports no torch."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

MAX_HEADER = 100_000_000
LFS_POINTER = b"version https://git-lfs"
"""The start of the file that git leaves in place of a large one (https://github.com/git-lfs/git-lfs, docs/spec.md)."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file. ``dtype`` is the name of the format, such as BF16 or F8_E4M3; ``size`` is in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


class HeaderError(ValueError):
    """The file is not a whole safetensors file. The message is a clause without a subject."""


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of the file by name, without their data. Raises HeaderError."""
    try:
        size = path.stat().st_size
    except OSError:
        raise HeaderError("is missing") from None
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if is_pointer(path):
            raise HeaderError("is a git-lfs pointer instead of the file. Run in its folder: git lfs pull")
        if not size:
            raise HeaderError("is empty")
        if length > min(MAX_HEADER, size - 8):
            raise HeaderError("has no safetensors header")
        try:
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            tensors = {name: _tensor(entry) for name, entry in entries.items()}
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise HeaderError("has an unreadable safetensors header") from None
    if end != size:
        raise HeaderError(f"has {size:,} bytes instead of {end:,}")
    return tensors


def _tensor(entry: dict[str, list[int]]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    return StoredTensor(str(entry["dtype"]), tuple(entry["shape"]), end - begin)


def find_flaw(path: Path) -> str | None:
    """Check a safetensors file against its header. Return what is wrong, as a clause without a subject, or None."""
    try:
        read_tensors(path)
    except HeaderError as error:
        return str(error)
    return None


def is_pointer(path: Path) -> bool:
    """Return whether git-lfs has left a pointer in place of this file."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False
