"""Tiles of the routing kernels: a pure function of the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

FEW = 64  # tokens up to which a launch is bound by reading the gate, not by the product


@dataclass(frozen=True)
class Config:
    """A tile is block_t tokens by block_e experts, block_d of the width at a time."""

    block_t: int
    block_e: int
    block_d: int
    num_warps: int
    num_stages: int


ONE = Config(1, 4, 1024, 4, 1)
SMALL = Config(16, 16, 256, 4, 3)
LARGE = Config(64, 64, 64, 4, 3)


def wide_step(width: int) -> int:
    """Inputs a step where a program has few rows."""
    return next(step for step in (1024, 512, 256) if width % step == 0)


def choose_config(tokens: int, width: int) -> Config:
    """Few tokens: narrow tiles, so that many programs share the reading of the gate; one token: no tensor cores."""
    if tokens == 1:
        return replace(ONE, block_d=wide_step(width))
    return SMALL if tokens <= FEW else LARGE
