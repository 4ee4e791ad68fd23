"""Tiles of the expert kernels, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

FEW_TOKENS = 64  # beyond this, blocks of slots; up to it, the kernels that stream each expert once a few tokens


@dataclass(frozen=True)
class Config:
    """`group` tokens of one expert share a program's weights; `rows` weight rows and `inputs` inputs a step."""

    group: int
    rows: int
    down_rows: int
    inputs: int
    down_inputs: int
    num_stages: int
    num_warps: int = 4


def choose_config(tokens: int, top_k: int, experts: int) -> Config:
    """Groups as large as an expert is likely to be shared: tokens * top_k / experts, up to eight.

    Tiles measured on an H100 (docs/log.md).
    """
    sharing = tokens * top_k / experts
    if tokens == 1 or sharing <= 0.5:
        return Config(1, 64, 64, 256, 256, 3)
    if sharing <= 1.5:
        return Config(2, 64, 64, 256, 256, 3)
    return Config(4, 128, 128, 128, 128, 4) if sharing <= 2.5 else Config(8, 128, 128, 128, 128, 4)
