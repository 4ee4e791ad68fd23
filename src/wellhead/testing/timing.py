"""Timing on a card: CUDA-graph replay over rotating inputs, beside the roof measured in the same process.

The roof is the larger of a device-to-device copy (bytes read and written) and a streaming read, both over memory that
no cache holds. Nothing here runs without a CUDA card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Any

import torch
import triton
import triton.language as tl

ROOF_BYTES = 2 << 30
WARM_UPS, REPLAYS = 3, 30


@triton.jit
def _read(source, sums, BLOCK: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each program adds STEPS tiles of BLOCK words; the sum is stored so that no load can be left out."""
    at = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS) + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for step in range(STEPS):
        total += tl.load(source + at + step * BLOCK)
    tl.store(sums + tl.program_id(0), tl.sum(total))


@dataclass(frozen=True)
class Roof:
    """GB/s (10^9 bytes a second) of this card in this process."""

    copy: float
    read: float

    @property
    def best(self) -> float:
        return max(self.copy, self.read)


@dataclass(frozen=True)
class Times:
    """Microseconds a run."""

    median: float
    p20: float
    p80: float


def times(runs: Sequence[Callable[[], Any]], replays: int = REPLAYS) -> Times:
    """Time of one run: all `runs` (over different inputs) are captured once, in order, and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    return timed(graph.replay, len(runs), replays)


def roof() -> Roof:
    """Copy and read of this card; the read is the best of a few tile shapes."""
    source = torch.randint(0, 1 << 20, (ROOF_BYTES // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source))
    best = 0.0
    for block in (1024, 2048, 4096):
        for steps in (4, 16, 64):
            programs = source.numel() // (block * steps)
            sums = torch.empty(programs, dtype=torch.int32, device="cuda")
            read = timed(partial(_read[(programs,)], source, sums, BLOCK=block, STEPS=steps), 1, 10)
            best = max(best, ROOF_BYTES / read.median / 1e3)
    return Roof(2 * ROOF_BYTES / copy.median / 1e3, best)


def timed(call: Callable[[], Any], runs: int = 1, replays: int = REPLAYS) -> Times:
    """Time of one of the `runs` runs that a call makes, over `replays` calls."""
    for _ in range(WARM_UPS):
        call()
    torch.cuda.synchronize()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    fifths = quantiles([1e3 * begin.elapsed_time(end) / runs for begin, end in marks], n=10, method="inclusive")
    return Times(fifths[4], fifths[1], fifths[7])
