"""Tiles of the expert kernels, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`group` tokens of one expert share a program's weights; `rows` weight rows and `inputs` inputs a step."""

    group: int
    rows: int = 64
    inputs: int = 256
    down_inputs: int = 256
    num_warps: int = 4
    num_stages: int = 3


def choose_config(tokens: int, top_k: int, experts: int) -> Config:
    """Groups as large as an expert is likely to be shared: tokens * top_k / experts, up to four."""
    sharing = tokens * top_k / experts
    if tokens == 1:
        return Config(group=1)
    return Config(group=2) if sharing <= 1 else Config(group=4, down_inputs=128, num_warps=8)
