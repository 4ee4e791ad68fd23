"""Rotary position embedding over interleaved pairs of the last dimensions, with YaRN frequencies for compressed layers.

Sources: Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN, without its attention factor), DeepSeek-V4 reference inference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Yarn:
    """YaRN's stretch: frequencies below the ramp keep their period, above it they are divided by `factor`."""

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float


def frequencies(dim: int, theta: float, yarn: Yarn | None) -> torch.Tensor:
    """fp32 [dim/2] angles per position: theta^(-2i/dim), blended with its 1/factor between the two YaRN corners."""
    base = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if yarn is None:
        return base

    def corner(rotations: float) -> float:
        return dim * math.log(yarn.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(corner(yarn.beta_fast)), 0)
    high = min(math.ceil(corner(yarn.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return base / yarn.factor * ramp + base * (1 - ramp)


def tables(positions: torch.Tensor, freqs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 (cos, sin) [T, len(freqs)] of positions * freqs, the angle being an fp32 product."""
    angle = positions.to(torch.float32).unsqueeze(-1) * freqs
    return angle.cos(), angle.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
    """Rotate pairs (x_2i, x_2i+1) of the last 2n dimensions of x [T, ..., D] by the angles of cos, sin [T, n].

    fp32 arithmetic, rounded once to x's dtype; the leading D - 2n dimensions are returned unchanged.
    `inverse` turns the other way.
    """
    shape = cos.shape[:1] + (1,) * (x.dim() - 2) + cos.shape[1:]
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    if inverse:
        sin = -sin
    rotated = 2 * shape[-1]
    tail = x[..., -rotated:].float().unflatten(-1, (-1, 2))
    a, b = tail[..., 0], tail[..., 1]
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return torch.cat((x[..., :-rotated], turned.to(x.dtype)), dim=-1)


def apply(
    x: torch.Tensor, positions: torch.Tensor, freqs: torch.Tensor, *, inverse: bool = False
) -> torch.Tensor:
    """`rotate` by positions * freqs: x [T, ..., D], positions [T] of any integer dtype."""
    return rotate(x, *tables(positions, freqs), inverse=inverse)
