"""The header of a safetensors file, read and checked without touching the tensors behind it.

Layout: 8 bytes little-endian header length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`,
then the tensors without gaps. A file cut short, padded or inconsistent is named before any memory is taken.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_AGAIN = "download the file again"
_LFS_POINTER = b"version https://git-lfs"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names file, tensor, found, expected and fix."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its name in the file, the file, safetensors dtype, shape and range of the file's bytes."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by stored name; CheckpointError if the file is damaged."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(max(8, len(_LFS_POINTER)))
        if start == _LFS_POINTER:
            raise CheckpointError(f"{file.name}: a git-lfs pointer, not the weights; run `git lfs pull`")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(
                f"{file.name}: {size} bytes, its first 8 promise a header of {length}: truncated or no "
                f"safetensors file; {_AGAIN}"
            )
        stream.seek(8)
        raw = stream.read(length)
    first = 8 + length
    tensors = {name: _entry(file, name, entry, first) for name, entry in _parse(file, raw).items()}
    _check_extent(file, tensors, first, size)
    return tensors


def _parse(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):  # JSON and UTF-8 errors alike
        raise CheckpointError(f"{file.name}: its header is not JSON; {_AGAIN}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file.name}: its header is no JSON object; {_AGAIN}")
    header.pop("__metadata__", None)
    return header


def _entry(file: Path, name: str, entry: Any, first: int) -> StoredTensor:
    try:
        begin, end = (first + int(offset) for offset in entry["data_offsets"])
        stored = StoredTensor(name, file, str(entry["dtype"]), tuple(map(int, entry["shape"])), begin, end)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{file.name}: tensor {name}: malformed header entry {entry!r}; {_AGAIN}") from None
    item = ITEM_BYTES.get(stored.dtype)
    expected = stored.nbytes if item is None else item * math.prod(stored.shape)
    if stored.nbytes != expected:
        raise CheckpointError(
            f"{file.name}: tensor {name}: {stored.nbytes} bytes, expected {expected} for {stored.dtype} "
            f"{list(stored.shape)}; {_AGAIN}"
        )
    return stored


def _check_extent(file: Path, tensors: dict[str, StoredTensor], first: int, size: int) -> None:
    position = first
    for stored in sorted(tensors.values(), key=lambda stored: (stored.begin, stored.end)):
        if stored.begin != position or stored.end < position:
            at, expected = stored.begin - first, position - first
            raise CheckpointError(f"{file.name}: tensor {stored.name} is at byte {at}, expected {expected}; {_AGAIN}")
        position = stored.end
    if position != size:
        short = f": truncated by {position - size} bytes" if position > size else ""
        raise CheckpointError(
            f"{file.name}: {size - first} bytes of tensors, expected {position - first}{short}; {_AGAIN}"
        )
