"""Mixture of experts with a clamped SwiGLU.

h = silu(min(g, limit)) * clamp(u, -limit, limit) with g = w1 x, u = w3 x; the routing weight multiplies h,
before w2 and before the quantisation of w2's input. y = sum over experts in fp32 of w2 h. Source: DeepSeek-V4
reference inference (Expert, MoE).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from wellhead.ops.linear.reference import product

Round = Callable[[torch.Tensor], torch.Tensor]


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
    w1: torch.Tensor,
    w3: torch.Tensor,
    w2: torch.Tensor,
    limit: float,
    round_input: Round,
) -> torch.Tensor:
    """Sum of the chosen experts: ids [T, k] (-1 = none, contributes nothing), weights fp32 [T, k] -> fp32 [T,
    d].

    w1, w3 fp32 [E, m, d], w2 fp32 [E, d, m]. Experts nobody chose are not read.
    """
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    a = round_input(x)
    by_expert = ids.flatten().argsort(stable=True)
    rows, weight = by_expert // max(1, ids.shape[1]), weights.flatten()[by_expert]
    # bin 0 counts the -1 ids, which sort first
    first, *counts = (ids.flatten() + 1).bincount(minlength=w1.shape[0] + 1).tolist()
    for e, count in enumerate(counts):
        if count:
            part = slice(first, first + count)
            h = _hidden(a[rows[part]], w1[e], w3[e], limit, weight[part])
            y.index_add_(0, rows[part], product(round_input(h), w2[e]).to(x.dtype).float())
            first += count
    return y
