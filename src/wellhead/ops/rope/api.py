"""Rotation of the last 64 dims of attention heads as a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.card import launch
from wellhead.ops.checks import expect
from wellhead.ops.rope.configs import HEADS, WARPS

ROTATED = 64
MOST_HEADS = 65535


@dataclass(frozen=True)
class Rope:
    """Pairs (a, b) of the last 64 dims become (a cos t - b sin t, a sin t + b cos t), t = fp32(position * freqs[i]).

    run(x bf16 [T, H, D], positions i64 [T], freqs fp32 [32], out bf16 [T, H, D]): out may be x, and then only the last
    64 are touched. `inverse` turns the other way. fp32 arithmetic, rounded once. Angles, thus positions for
    frequencies up to 1, from 0 up to 2^20. T may be 0. One launch; allocates and synchronises nothing.
    """

    heads: int
    dim: int
    inverse: bool

    def run(self, x: torch.Tensor, positions: torch.Tensor, freqs: torch.Tensor, out: torch.Tensor) -> None:
        from wellhead.ops.rope import kernels

        tokens = x.shape[0]
        for name, value in (("x", x), ("out", out)):
            expect(name, value, (tokens, self.heads, self.dim), torch.bfloat16)
        expect("positions", positions, (tokens,), torch.int64)
        expect("freqs", freqs, (ROTATED // 2,), torch.float32)
        if tokens:
            given = constants(self.dim, self.inverse, x.data_ptr() != out.data_ptr())
            grid = (tokens, -(-self.heads // HEADS))
            kernels.rope_kernel[grid](x, out, positions, freqs, self.heads, **given, num_warps=WARPS, **launch())


def constants(dim: int, inverse: bool, copy: bool) -> dict[str, int | bool]:
    """The constexpr arguments."""
    return {"D": dim, "BH": HEADS, "INVERSE": inverse, "COPY": copy}


def supports(heads: int, dim: int) -> str | None:
    """None, or why such heads cannot run."""
    if not ROTATED <= dim <= 512 or dim & (dim - 1):
        return f"dim={dim}: 64, 128, 256 or 512"
    return None if 1 <= heads <= MOST_HEADS else f"heads={heads}: 1 to {MOST_HEADS}"


def plan(heads: int, dim: int = 512, *, inverse: bool = False) -> Rope:
    """ValueError names what is supported."""
    why = supports(heads, dim)
    if why is not None:
        raise ValueError(f"rope cannot be planned: {why}")
    return Rope(heads, dim, inverse)
