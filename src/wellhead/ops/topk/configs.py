"""How a row is cut among programs: a pure function of its width."""

from __future__ import annotations

from dataclasses import dataclass

SHORT = 8192  # columns up to which a program takes a row alone, and the most that one looks at together
LISTED = 2048  # listed entries that the last program takes into registers: about 1.5 k are expected
WIDE = 131072  # columns from which 32 programs share a row


@dataclass(frozen=True)
class Config:
    """`splits` programs share a row, 0 for one program and one launch; the set they choose does not depend on it.

    block: entries that a program looks at together; num_warps its warps; last_ the same of the last launch.
    """

    splits: int
    block: int
    num_warps: int
    last_block: int = LISTED
    last_warps: int = 8


def choose_config(columns: int) -> Config:
    """One program up to SHORT columns; else splits whose share is a block, or begins with one."""
    splits = 0 if columns <= SHORT else 16 if columns <= WIDE else 32
    share = -(-columns // max(splits, 1))
    block = min(max(256, 1 << (share - 1).bit_length()), SHORT)
    return Config(splits, block, min(max(4, block // 256), 16))


def region(config: Config, columns: int, k: int) -> int:
    """Entries that each part of a row may list: all of it, or the k best and as many more."""
    share = -(-columns // max(config.splits, 1)) + 32  # parts are whole chunks of 32
    return min(share, max(1024, 2 << (k - 1).bit_length()))
