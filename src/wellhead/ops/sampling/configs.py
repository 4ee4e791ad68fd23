"""How a row of logits is cut among programs: a pure function of the shape."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 512  # logits that a program weighs together: 16 digits of each fit the registers
SPLITS = (128, 32, 8)  # every one is compiled
PROGRAMS = 512  # about as many as fill the largest card


@dataclass(frozen=True)
class Config:
    """`splits` programs share a row; the token they choose does not depend on it."""

    splits: int
    block: int = BLOCK
    num_warps: int = 8


def choose_config(rows: int, columns: int) -> Config:
    """The most splits that need no more than PROGRAMS programs, a block in each, else the fewest."""
    fitting = (splits for splits in SPLITS if splits * rows <= PROGRAMS and splits * BLOCK <= columns)
    return Config(next(fitting, SPLITS[-1]))


def rows_of_each(most: int, columns: int) -> list[int]:
    """Numbers of rows up to `most`, one for each of the SPLITS that they are cut into."""
    found = {choose_config(rows, columns).splits: rows for rows in range(1, most + 1)}
    return sorted(found.values())
