"""How a row of logits is cut among programs: a pure function of the shape."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 512  # logits that a program weighs together: 16 digits of each fit the registers
MOST_SPLITS = 32
PROGRAMS = 512  # about as many as fill the largest card


@dataclass(frozen=True)
class Config:
    """`splits` programs share a row; the token they choose does not depend on it."""

    splits: int
    block: int = BLOCK
    num_warps: int = 4


def choose_config(rows: int, columns: int) -> Config:
    """As many splits as keep PROGRAMS busy, none with less than one block; a power of two."""
    wanted = min(MOST_SPLITS, max(1, PROGRAMS // max(rows, 1)), max(1, columns // BLOCK))
    return Config(splits=1 << (wanted.bit_length() - 1))
