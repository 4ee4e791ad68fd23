"""Weights asked for ahead: lines of L2 that a product finds there, fetched while nothing else reads memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

LINE, LINES = 256, 1024  # bytes that a request brings (on an H100 128 and 512 are no better); requests a program
MOST = 3  # weights of one launch


def prefetch(weights: Sequence[torch.Tensor], budget: int) -> None:
    """Ask L2 for the first `budget` bytes of one to three contiguous weights, in their order."""
    from wellhead.ops.linear.prefetch_kernels import prefetch_kernel

    starts, sizes = [], []
    for weight in weights:
        starts.append(weight.view(torch.uint8))
        sizes.append(min(budget, weight.nbytes))
        budget -= sizes[-1]
    starts += starts[:1] * (MOST - len(starts))
    sizes += [0] * (MOST - len(sizes))
    prefetch_kernel[(-(-max(sizes) // (LINE * LINES)),)](*starts, *sizes, LINE=LINE, LINES=LINES, num_warps=4)
