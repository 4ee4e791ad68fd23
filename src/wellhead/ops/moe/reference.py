"""Mixture of experts with a clamped SwiGLU.

h = silu(min(g, limit)) * clamp(u, -limit, limit) with g = w1 x, u = w3 x; the routing weight multiplies h, before w2
and before the quantisation of w2's input. y = sum over experts in fp32 of w2 h.
Source: DeepSeek-V4 reference inference (Expert, MoE).
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

    `round_input` is the activation quantisation in front of every product (identity when quantisation is off);
    `row_weight` fp32 [T] multiplies the hidden vector. g, u and the result are rounded to x's dtype.
    """
    a = round_input(x)
    h = swiglu(product(a, w1).to(x.dtype), product(a, w3).to(x.dtype), limit)
    if row_weight is not None:
        h = h * row_weight.unsqueeze(-1)
    return product(round_input(h.to(x.dtype)), w2).to(x.dtype)


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
    """Sum of the chosen experts: ids [T, k] (-1 = none, contributes nothing), weights fp32 [T, k] -> fp32 [T, d].

    w1, w3 fp32 [E, m, d], w2 fp32 [E, d, m]. Experts nobody chose are not read.
    """
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for e in ids[ids >= 0].unique().tolist():
        rows, slots = (ids == e).nonzero(as_tuple=True)
        y.index_add_(0, rows, expert(x[rows], w1[e], w3[e], w2[e], limit, round_input, weights[rows, slots]).float())
    return y
