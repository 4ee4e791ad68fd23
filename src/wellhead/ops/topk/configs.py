"""How a row is cut among programs: a pure function of the shape."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 2048  # entries that a program looks at together
SPLITS = (32, 8, 1)  # every one is compiled; more histograms of a row would cost more to read than they save
PROGRAMS = 512  # about as many as fill the largest card
SHORT = 8192  # columns up to which a program takes a row alone: on an H100 7.8 us for 1,024, 13 for 4,096


@dataclass(frozen=True)
class Config:
    """`splits` programs share a row, 0 for one program and one launch; the set they choose does not depend on it."""

    splits: int
    block: int = BLOCK
    num_warps: int = 8


def choose_config(rows: int, columns: int) -> Config:
    """The most splits that need no more than PROGRAMS programs and leave each a block of a full row, else one."""
    if columns <= SHORT:
        block = max(256, 1 << (columns - 1).bit_length())
        return Config(0, block, max(4, block // 512))
    for splits in SPLITS:
        if splits * max(rows, 1) <= PROGRAMS and splits * BLOCK <= columns:
            return Config(splits)
    return Config(SPLITS[-1])
