"""Tiles of the bf16 products, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`tokens` and weight `rows` a program, 128 inputs a step."""

    tokens: int
    rows: int
    num_warps: int
    num_stages: int


def choose_config(tokens: int, n: int) -> Config:
    """The same for every number of tokens up to the next power of two; few rows are cut fine to fill the card."""
    padded = max(16, min(128, 1 << max(0, tokens - 1).bit_length()))
    if padded == 128:
        return Config(128, 128, 8, 2) if n >= 4096 else Config(128, 32, 4, 2)
    if padded == 64:
        return Config(64, 64, 4, 2) if n >= 4096 else Config(64, 32, 2, 2)
    return Config(padded, 64, 4 if padded == 16 else 2, 3) if n >= 16384 else Config(padded, 16, 2, 5)
