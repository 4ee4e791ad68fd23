"""Mixture of experts with a clamped SwiGLU.

h = silu(min(g, limit)) * clamp(u, -limit, limit) with g = w1 x, u = w3 x; the routing weight multiplies h,
before w2 and before the quantisation of w2's input. y = sum over experts in fp32 of w2 h. Source: DeepSeek-V4
reference inference (Expert, MoE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from wellhead.formats import block_fp8, mxfp4
from wellhead.ops.linear.reference import product

Round = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class PackedExperts:
    """Experts as a checkpoint stores them, each unpacked to fp32 when it is asked for.

    codes uint8 [E, out, in/2] with MXFP4 scales [E, out, in/32], or float8_e4m3fn [E, out, in] with block scales.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, e: int) -> torch.Tensor:
        unpack = block_fp8.dequantize_weight if self.codes.dtype == torch.float8_e4m3fn else mxfp4.dequantize
        return unpack(self.codes[e], self.scale[e])


Experts = torch.Tensor | PackedExperts


def swiglu(gate: torch.Tensor, up: torch.Tensor, limit: float) -> torch.Tensor:
    """fp32 silu(min(gate, limit)) * clamp(up, -limit, limit): the gate is clamped from above only."""
    return F.silu(gate.float().clamp_max(limit)) * up.float().clamp(-limit, limit)


def expert(
    x: torch.Tensor,
    w1: torch.Tensor,
    w3: torch.Tensor,
    w2: torch.Tensor,
    limit: float,
    round_input: Round,
    row_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """One SwiGLU block: x [T, d], w1/w3 fp32 [m, d], w2 fp32 [d, m] -> x's dtype [T, d].

    `round_input` is the activation quantisation in front of every product (identity when quantisation is
    off); `row_weight` fp32 [T] multiplies the hidden vector. g, u and the result are rounded to x's dtype.
    """
    h = _hidden(round_input(x), w1, w3, limit, row_weight)
    return product(round_input(h), w2).to(x.dtype)


def _hidden(
    a: torch.Tensor, w1: torch.Tensor, w3: torch.Tensor, limit: float, row_weight: torch.Tensor | None
) -> torch.Tensor:
    wide = a.float()
    h = swiglu(product(wide, w1).to(a.dtype), product(wide, w3).to(a.dtype), limit)
    if row_weight is not None:
        h = h * row_weight.unsqueeze(-1)
    return h.to(a.dtype)


def routed(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    w1: Experts,
    w3: Experts,
    w2: Experts,
    limit: float,
    round_input: Round,
) -> torch.Tensor:
    """Sum of the chosen experts: ids [T, k] (-1 = none, contributes nothing), weights fp32 [T, k] -> fp32 [T, d].

    w1, w3 fp32 [E, m, d], w2 fp32 [E, d, m]. Experts nobody chose are not read.
    """
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    a = round_input(x)
    by_expert = ids.flatten().argsort(stable=True)
    rows, weight = by_expert // max(1, ids.shape[1]), weights.flatten()[by_expert]
    # bin 0 counts the -1 ids, which sort first
    first, *counts = (ids.flatten() + 1).bincount(minlength=len(w1) + 1).tolist()
    for e, count in enumerate(counts):
        if count:
            part = slice(first, first + count)
            h = _hidden(a[rows[part]], w1[e], w3[e], limit, weight[part])
            y.index_add_(0, rows[part], product(round_input(h), w2[e]).to(x.dtype).float())
            first += count
    return y
