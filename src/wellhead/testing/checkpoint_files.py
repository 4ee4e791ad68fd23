"""Write a checkpoint in the official layout: for tests, and for the tool that makes the embedded one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from wellhead.model.config_file import CONFIG_FILE, load_config
from wellhead.model.shard import INDEX_FILE
from wellhead.model.tensors import TensorSpec, expected_tensors
from wellhead.model.weights import AS_BYTES

_STORED_DTYPE = {
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I64": torch.int64,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_HEADER_ENTRY_BYTES = 128  # JSON around a name: dtype, shape, two offsets


def write_checkpoint(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, torch.Tensor]],
    shard_bytes: int = 4_000_000_000,
) -> None:
    """Write `config.json`, numbered shards of at most `shard_bytes` and their index into `folder`.

    `tensors` are (official name, tensor) as `iter_tensors` yields them; one shard of them is held at a time.
    ValueError for a name, shape or dtype that `config` does not have, a tensor too large for a shard, given
    twice or missing, or a folder that is not empty.
    """
    folder = Path(folder)
    missing = {spec.name: spec for spec in expected_tensors(load_config(config))}
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: not empty, expected a new folder for the checkpoint")
    parts: list[list[str]] = []
    total = 0
    for shard in _shards(_on_disk(tensors, missing), shard_bytes):
        save_file(shard, folder / f"part-{len(parts)}.safetensors", metadata={"format": "pt"})
        parts.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if missing:
        raise ValueError(f"{len(missing)} tensors of the configuration were not given, such as {next(iter(missing))}")
    weight_map = {}
    for number, part in enumerate(parts):
        file_name = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / file_name)
        weight_map.update(dict.fromkeys(part, file_name))
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / CONFIG_FILE, dict(config))


def _on_disk(
    tensors: Iterable[tuple[str, torch.Tensor]], missing: dict[str, TensorSpec]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in their stored dtype; each name seen leaves `missing`."""
    for name, tensor in tensors:
        spec = missing.pop(name, None)
        if spec is None:
            raise ValueError(f"tensor {name!r} is given twice or not part of this configuration")
        dtype = _STORED_DTYPE[spec.dtype]
        if tensor.dtype == torch.uint8 and dtype in AS_BYTES:
            tensor = tensor.contiguous().view(dtype)
        if tensor.dtype != dtype or tuple(tensor.shape) != spec.shape:
            raise ValueError(
                f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, expected {spec.dtype} {list(spec.shape)}"
            )
        yield name, tensor.contiguous()


def _shards(tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    room = shard_bytes - _HEADER_ENTRY_BYTES
    for name, tensor in tensors:
        size = tensor.nbytes + len(name) + _HEADER_ENTRY_BYTES
        if size > shard_bytes - _HEADER_ENTRY_BYTES:
            raise ValueError(f"tensor {name!r} takes {size} bytes, shard_bytes is {shard_bytes}; raise shard_bytes")
        if size > room:
            yield shard
            shard, room = {}, shard_bytes - _HEADER_ENTRY_BYTES
        shard[name] = tensor
        room -= size
    if shard:
        yield shard


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
