"""Safetensors files of nothing but a header and zeros."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from wellhead.model.shard import ITEM_BYTES


def write(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """{name: (dtype, shape)}."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    words = json.dumps(header).encode()
    path.write_bytes(len(words).to_bytes(8, "little") + words + bytes(end))
