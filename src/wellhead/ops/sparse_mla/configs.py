"""How sparse decode is cut, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

PROGRAMS = 256  # about two for every multiprocessor of the cards this serves
RECORDS = 16  # a tile; with 32 the registers of 32 heads no longer suffice on SM120


@dataclass(frozen=True)
class Config:
    """`heads` of one token in a program (each record is gathered once for all of them), records in `splits` parts."""

    heads: int
    splits: int
    records: int = RECORDS
    num_warps: int = 8
    num_stages: int = 1


def choose_config(tokens: int, heads: int, most_records: int) -> Config:
    """As many parts as fill the card, none shorter than a tile; a power of two up to 16."""
    width = 32 if heads > 16 else 16
    programs = max(1, tokens) * -(-heads // width)
    wanted = min(16, max(1, PROGRAMS // programs), max(1, -(-most_records // RECORDS)))
    return Config(width, 1 << (wanted.bit_length() - 1))
