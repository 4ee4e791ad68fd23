"""Experts as the kernels read them; needs no Triton, so that memory can be planned without one."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedWeights:
    """Experts of this rank, gate and up rows in turn (`layout.interleave`), rows of weights and rows of scales alike.

    MXFP4: w13 u8 [E, 2m, d/2], s13 u8 [E, 2m, d/32], w2 u8 [E, d, m/2], s2 u8 [E, d, m/32]. FP8: w13 E4M3 [E, 2m, d],
    s13 [E, 2m/128, d/128], w2 E4M3 [E, d, m], s2 [E, d/128, m/128]; scales u8 UE8M0, or fp32.
    """

    w13: torch.Tensor
    s13: torch.Tensor
    w2: torch.Tensor
    s2: torch.Tensor
