"""Tiles of the routing kernels: a pure function of the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

FEW = 64  # tokens up to which a launch is bound by reading the gate, not by the product


@dataclass(frozen=True)
class Config:
    """A tile is block_t tokens by block_e experts, block_d of the width at a time."""

    block_t: int
    block_e: int
    block_d: int
    num_warps: int
    num_stages: int


SMALL = Config(16, 16, 256, 4, 3)
LARGE = Config(64, 64, 64, 4, 3)


def choose_config(tokens: int) -> Config:
    """Few tokens: narrow tiles, so that many programs share the reading of the gate."""
    return SMALL if tokens <= FEW else LARGE
