"""Weights read ahead: a product finds them in L2, where they came while nothing else read memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SECTOR = 32  # bytes that a load brings
AT_ONCE, TURNS = 1024, 4  # loads of a program: longer ones come too late, more of them hold up what the step waits for
MOST = 3  # weights of one launch


def prefetch(weights: Sequence[torch.Tensor], budget: int) -> None:
    """Have the first `budget` bytes of one to three contiguous weights in L2, in their order."""
    from wellhead.ops.linear.prefetch_kernels import prefetch_kernel

    starts, sizes = [], []
    for weight in weights:
        starts.append(weight.view(torch.uint8))
        sizes.append(min(budget, weight.nbytes))
        budget -= sizes[-1]
    starts += starts[:1] * (MOST - len(starts))
    sizes += [0] * (MOST - len(sizes))
    programs = -(-max(sizes) // (SECTOR * AT_ONCE * TURNS))
    prefetch_kernel[(programs,)](*starts, *sizes, SECTOR=SECTOR, AT_ONCE=AT_ONCE, TURNS=TURNS, num_warps=4)
