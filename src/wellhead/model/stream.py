"""Stream a checkpoint's files straight into one rank's device weights.

A rank reads its own rows only. Where it takes columns (wo_b, w2 of split experts) it reads whole rows, since its part
lies in every page of the file, and keeps its columns. Beside the model itself it needs `BUFFERS` staging buffers of
host memory and one of device memory; the files are read once, in order, a layer at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch

from wellhead.model.checkpoint import Checkpoint
from wellhead.model.device_layout import DeviceLayout, Part
from wellhead.model.device_weights import ModelWeights
from wellhead.model.reading import Range, Reader
from wellhead.model.repack import Placement, Repack
from wellhead.model.shard import CheckpointError, StoredTensor
from wellhead.model.split import Split
from wellhead.model.weights import check_table, progress_bar

BUFFER_BYTES = 64 << 20
BUFFERS = 4
THREADS = 8

# how bytes in a buffer are read; codes and UE8M0 stay bytes
_VIEWED = {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}


@dataclass(frozen=True)
class LoadReport:
    """Bytes read of the files, bytes of weights on the device, and the seconds it took, allocation included."""

    read_bytes: int
    weight_bytes: int
    seconds: float

    @property
    def gb_per_s(self) -> float:
        return self.read_bytes / self.seconds / 1e9


@dataclass(frozen=True)
class _Rows:
    """Rows low .. high of a placement's source, of all its columns."""

    placement: Placement
    stored: StoredTensor
    low: int
    high: int


def load_device_weights(
    checkpoint: Checkpoint,
    split: Split,
    device: torch.device | str,
    *,
    with_mtp: bool = False,
    progress: bool = False,
    buffer_bytes: int = BUFFER_BYTES,
    threads: int = THREADS,
) -> tuple[ModelWeights, LoadReport]:
    """The rank's weights of an opened (so checked) checkpoint; MTP stays on disk unless asked for.

    ValueError when the model cannot be split so, before anything is allocated. CheckpointError for a file that ends
    early, a block-FP8 scale that is no power of two, or a hash table that names an expert that does not exist.
    `progress` draws a bar with the rate when stderr is a terminal.
    """
    start = time.perf_counter()
    config = checkpoint.config
    layout, repack = DeviceLayout.of(config, split, device), Repack(config, split)
    plan = DeviceLayout.of(config, split, "meta")
    total = sum(
        _read_bytes(checkpoint, p) for path, part in plan.parts(with_mtp) for p in repack.placements(path, part)
    )
    reader = Reader(buffer_bytes=buffer_bytes, buffers=BUFFERS, threads=threads, pinned=layout.device.type == "cuda")
    parts: dict[str, Part] = {}
    stage = _Stage(layout.device, buffer_bytes)

    def ranges() -> Iterator[Range[_Rows]]:
        for path, part in layout.parts(with_mtp):
            parts[path] = part
            placements = ((checkpoint.tensors[p.name], p) for p in repack.placements(path, part))
            for stored, placement in sorted(placements, key=lambda pair: (pair[0].file, pair[0].begin)):
                yield from _ranges(placement, stored, buffer_bytes)

    with progress_bar(total, progress) as advance, closing(reader.batches(ranges(), stage.release)) as batches:
        for buffer, used, placed in batches:
            staged = stage.take(buffer, used)
            for at, part in placed:
                stage.place(staged[at : at + part.nbytes], part.tag)
            advance(sum(part.nbytes for _, part in placed))
    stage.check()
    weights = layout.join(parts)
    for number, layer in enumerate(weights.layers):
        if layer.moe.table is not None:
            check_table(f"layers.{number}.ffn.gate.tid2eid", layer.moe.table, config)
    return weights, LoadReport(total, weights.nbytes, time.perf_counter() - start)


class _Stage:
    """Bytes on their way from a host buffer into the tree."""

    def __init__(self, device: torch.device, nbytes: int):
        self._cuda = device.type == "cuda"
        self._device = device
        self._bytes = torch.empty(nbytes if self._cuda else 0, dtype=torch.uint8, device=device)
        self._inexact: list[tuple[str, torch.Tensor]] = []

    def take(self, buffer: torch.Tensor, used: int) -> torch.Tensor:
        """The buffer's bytes where the tree is."""
        if not self._cuda:
            return buffer
        self._bytes[:used].copy_(buffer[:used], non_blocking=True)
        return self._bytes

    def release(self) -> None:
        """Return when the buffer taken last may be written again."""
        if self._cuda:
            torch.cuda.current_stream(self._device).synchronize()

    def place(self, raw: torch.Tensor, rows: _Rows) -> None:
        placement, stored = rows.placement, rows.stored
        source = raw.view(_VIEWED.get(stored.dtype, torch.uint8)).view(rows.high - rows.low, *stored.shape[1:])
        if placement.columns is not None:
            source = source[:, placement.columns]
        first = placement.rows.start
        target = placement.target[rows.low - first : rows.high - first]
        if target.dtype == torch.uint8 and source.dtype == torch.float32:
            source = self._exponents(source, placement.name)
        elif target.element_size() == 1:
            target = target.view(torch.uint8)
        target.copy_(source)

    def _exponents(self, scale: torch.Tensor, name: str) -> torch.Tensor:
        """UE8M0 of fp32 powers of two; whether they were is asked at the end, without a wait in between."""
        bits = scale.contiguous().view(torch.int32)
        # a mantissa, a sign, zero, infinity
        wrong = (bits & 0x7FFFFF != 0) | (bits <= 0) | (bits == 0x7F800000)
        self._inexact.append((name, wrong.any()))
        return (bits >> 23).to(torch.uint8)

    def check(self) -> None:
        wrong = [name for name, found in self._inexact if bool(found)]
        if wrong:
            raise CheckpointError(
                f"{len(wrong)} tensors hold scales that are no powers of two, such as {wrong[0]}; the dense kernels "
                "read UE8M0: use the official weights"
            )


def _ranges(placement: Placement, stored: StoredTensor, most_bytes: int) -> Iterator[Range[_Rows]]:
    """The placement's rows as byte ranges that each fit a buffer."""
    row = stored.nbytes // stored.shape[0]
    step = max(1, most_bytes // row)
    for low in range(placement.rows.start, placement.rows.stop, step):
        high = min(placement.rows.stop, low + step)
        yield Range(stored.file, stored.begin + low * row, (high - low) * row, _Rows(placement, stored, low, high))


def _read_bytes(checkpoint: Checkpoint, placement: Placement) -> int:
    stored = checkpoint.tensors[placement.name]
    return (placement.rows.stop - placement.rows.start) * (stored.nbytes // stored.shape[0])
