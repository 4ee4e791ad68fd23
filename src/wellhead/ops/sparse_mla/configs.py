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


@dataclass(frozen=True)
class PrefillConfig:
    """`heads` of one token in a program, `records` a tile; keys_first: scores as records x heads."""

    heads: int
    records: int = 16
    num_warps: int = 8
    num_stages: int = 3
    keys_first: bool = True


def choose_prefill_config(heads: int) -> PrefillConfig:
    """As many heads as the registers hold sums for: 64 x 512 in fp32 is half of them.

    Three stages: slots two tiles ahead, records one. A warp takes eight heads' scores, so fewer heads want four warps;
    without stages two such programs fit SM120's shared memory to the byte and fill each other's waits.
    """
    if heads > 32:
        return PrefillConfig(64)
    if heads > 16:
        return PrefillConfig(32, num_warps=4, num_stages=1)
    return PrefillConfig(16, records=32, num_warps=4, num_stages=1)
