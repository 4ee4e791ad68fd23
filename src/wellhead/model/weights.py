"""Read a checkpoint's tensors one by one.

In memory, UE8M0 scales and packed E2M1 weights are `uint8` bytes; on disk they are `F8_E8M0` and `I8`. Every
other dtype is the same on both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby

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

from wellhead.model.checkpoint import Checkpoint
from wellhead.model.config import ModelConfig
from wellhead.model.shard import CheckpointError, StoredTensor

AS_BYTES = (torch.int8, torch.float8_e8m0fnu)


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
                        yield name, tensor.view(torch.uint8) if tensor.dtype in AS_BYTES else tensor
                        advance(stored.nbytes)
            except SafetensorError as error:
                again = "it changed after it was opened: download it again"
                raise CheckpointError(f"{file.name}: {error}; {again}") from None


def check_table(name: str, table: torch.Tensor, config: ModelConfig) -> None:
    """CheckpointError where a hash layer's table names an expert that does not exist."""
    low, high, count = int(table.min()), int(table.max()), config.n_routed_experts
    if low < 0 or high >= count:
        raise CheckpointError(f"{name} names experts {low} to {high}, expected 0 to {count - 1}; download it again")


def _selected(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, StoredTensor]:
    selected = {}
    for name in names:
        if name not in checkpoint.tensors:
            raise ValueError(
                f"tensor {name!r} is not in the checkpoint {checkpoint.folder}; names are the official ones"
            )
        selected[name] = checkpoint.tensors[name]
    return selected


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
