"""Tiles of the routing kernels: a pure function of the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

FEW = 64  # tokens up to which a launch is bound by reading the gate, not by the product


@dataclass(frozen=True)
class Config:
    """A tile is block_t tokens by block_e experts, block_d of the width at a time (of one token: all of it)."""

    block_t: int
    block_e: int
    block_d: int
    num_warps: int
    num_stages: int


ONE = Config(1, 2, 4096, 4, 1)
SMALL = Config(16, 16, 256, 4, 3)
LARGE = Config(64, 64, 64, 4, 3)


def wide_step(width: int) -> int:
    """Inputs a step where a program has few rows."""
    return next(step for step in (1024, 512, 256) if width % step == 0)


def choose_config(tokens: int, width: int) -> Config:
    """Few tokens: narrow tiles, so that many programs share the reading of the gate; one token: no tensor cores."""
    if tokens == 1:
        return replace(ONE, block_d=1 << (width - 1).bit_length())
    return SMALL if tokens <= FEW else LARGE
