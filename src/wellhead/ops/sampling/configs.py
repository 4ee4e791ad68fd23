"""How a row of logits is cut among programs: a pure function of the shape."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 512  # logits that a program weighs together: 16 digits of each fit the registers
SPLITS = (32, 8)  # every one is compiled
PROGRAMS = 512  # about as many as fill the largest card


@dataclass(frozen=True)
class Config:
    """`splits` programs share a row; the token they choose does not depend on it."""

    splits: int
    block: int = BLOCK
    num_warps: int = 8


def choose_config(rows: int) -> Config:
    """The most splits that need no more than PROGRAMS programs, else the fewest."""
    return Config(next((splits for splits in SPLITS if splits * rows <= PROGRAMS), SPLITS[-1]))
