"""How sparse decode is cut, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

PROGRAMS = 128  # about one for every multiprocessor of the cards this serves: each holds a whole record tile


@dataclass(frozen=True)
class Config:
    """`heads` of one token in a program (each record is gathered once for all of them), records in `splits` parts."""

    heads: int
    splits: int
    records: int  # a tile
    num_warps: int
    num_stages: int = 1


def choose_config(tokens: int, heads: int, most_records: int) -> Config:
    """As many parts as fill the card, none shorter than a tile; a power of two up to 16.

    32 heads and 32 records are the most that SM120's registers and shared memory hold; few tokens take 16 and 16, which
    is quicker to the end and fills more multiprocessors.
    """
    few = max(1, tokens) * -(-heads // 16) <= 16 or heads <= 16
    width, records, warps = (16, 16, 4) if few else (32, 32, 8)
    programs = max(1, tokens) * -(-heads // width)
    wanted = min(16, max(1, PROGRAMS // programs), max(1, -(-most_records // records)))
    return Config(width, 1 << (wanted.bit_length() - 1), records, warps)
