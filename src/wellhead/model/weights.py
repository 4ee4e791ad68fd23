"""Read a checkpoint's tensors one by one, and write a checkpoint in the official layout.

In memory, UE8M0 scales and packed E2M1 weights are `uint8` bytes; on disk they are `F8_E8M0` and `I8`. Every
other dtype is the same on both sides.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from wellhead.model.checkpoint import INDEX_FILE, Checkpoint
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import CONFIG_FILE, load_config
from wellhead.model.shard import CheckpointError, StoredTensor
from wellhead.model.tensors import TensorSpec, expected_tensors

_STORED_DTYPE = {
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I64": torch.int64,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_AS_BYTES = (torch.int8, torch.float8_e8m0fnu)
_HEADER_ENTRY_BYTES = 128  # JSON around a name: dtype, shape, two offsets


def iter_tensors(
    checkpoint: Checkpoint, names: Iterable[str] | None = None, progress: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (official name, CPU tensor) of `names`, or of all, file by file in the order of the bytes.

    One file is open at a time; a tensor is a view of its mapped bytes, memory is what the consumer keeps.
    `progress` draws a bar with the rate when stderr is a terminal. ValueError for an unknown name, CheckpointError
    for a file that changed.
    """
    wanted = checkpoint.tensors if names is None else _selected(checkpoint, names)
    in_order = sorted(wanted.items(), key=lambda item: (item[1].file, item[1].begin))
    with progress_bar(sum(stored.nbytes for stored in wanted.values()), progress) as advance:
        for file, named in groupby(in_order, lambda item: item[1].file):
            try:
                with safe_open(file, framework="pt") as shard:
                    for name, stored in named:
                        tensor = shard.get_tensor(stored.name)
                        yield name, tensor.view(torch.uint8) if tensor.dtype in _AS_BYTES else tensor
                        advance(stored.nbytes)
            except SafetensorError as error:
                again = "it changed after it was opened: download it again"
                raise CheckpointError(f"{file.name}: {error}; {again}") from None


def check_table(name: str, table: torch.Tensor, config: ModelConfig) -> None:
    """CheckpointError where a hash layer's table names an expert that does not exist."""
    low, high, count = int(table.min()), int(table.max()), config.n_routed_experts
    if low < 0 or high >= count:
        raise CheckpointError(f"{name} names experts {low} to {high}, expected 0 to {count - 1}; download it again")


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


def _selected(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, StoredTensor]:
    selected = {}
    for name in names:
        if name not in checkpoint.tensors:
            raise ValueError(
                f"tensor {name!r} is not in the checkpoint {checkpoint.folder}; names are the official ones"
            )
        selected[name] = checkpoint.tensors[name]
    return selected


def _on_disk(
    tensors: Iterable[tuple[str, torch.Tensor]], missing: dict[str, TensorSpec]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in their stored dtype; each name seen leaves `missing`."""
    for name, tensor in tensors:
        spec = missing.pop(name, None)
        if spec is None:
            raise ValueError(f"tensor {name!r} is given twice or not part of this configuration")
        dtype = _STORED_DTYPE[spec.dtype]
        if tensor.dtype == torch.uint8 and dtype in _AS_BYTES:
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


@contextmanager
def progress_bar(total: int, wanted: bool, what: str = "reading weights") -> Iterator[Callable[[int], None]]:
    """A bar over `total` bytes with their rate, drawn when `wanted` and stderr is a terminal; call what it yields."""
    if not wanted or not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)
