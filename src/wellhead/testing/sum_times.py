"""Sums over ranks, timed alone."""

from __future__ import annotations

import functools
from typing import Any

import torch

from wellhead.model.parallel import Group
from wellhead.testing import timing

CHAIN = 50  # sums in one graph


def sum_times(group: Group, device: torch.device) -> dict[str, Any]:
    """`sums`: the way that steps take; by way, microseconds of a sum in a captured chain of CHAIN over different bf16
    tensors of 8 and 64 KB, the median over replays. Every rank calls this.
    """
    found: dict[str, Any] = {"sums": group.sums[0]}
    for key, size in (("sum_8k_us", 8 << 10), ("sum_64k_us", 64 << 10)):
        parts = [torch.randn(size // 2, device=device).bfloat16() for _ in range(CHAIN)]
        found[key] = {}
        for way in group.ways:
            group.barrier()
            runs = [functools.partial(group.reduce, part, way=way) for part in parts]
            found[key][way] = round(timing.times(runs).median, 2)
    return found
