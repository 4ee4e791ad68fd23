"""How a row is cut among programs: a pure function of the shape."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 2048  # entries that a program looks at together
MOST_SPLITS = 32  # the histograms of one row, one a split, are read by every program of the next pass
PROGRAMS = 512  # about as many as fill the largest card


@dataclass(frozen=True)
class Config:
    """`splits` programs share a row; the set they choose does not depend on it."""

    splits: int
    block: int = BLOCK
    num_warps: int = 8


def choose_config(rows: int, columns: int) -> Config:
    """As many splits as keep PROGRAMS busy, none with less than one block of a full row; a power of two."""
    wanted = min(MOST_SPLITS, max(1, PROGRAMS // max(rows, 1)), max(1, columns // BLOCK))
    return Config(splits=1 << (wanted.bit_length() - 1))
