"""How sparse attention is cut, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

PROGRAMS = 128  # about one for every multiprocessor of the cards this serves: each holds a whole record tile


@dataclass(frozen=True)
class Config:
    """`heads` of one token in a program (each record is gathered once for all of them), `records` a tile, in `splits`.

    keys_first: scores as records x heads.
    """

    heads: int
    splits: int
    records: int
    num_warps: int
    num_stages: int
    keys_first: bool = True


def choose_config(tokens: int, heads: int, most_records: int) -> Config:
    """As many parts as fill the card, none shorter than a tile; a power of two up to 16, one for many tokens."""
    tokens = max(1, tokens)
    few = tokens * -(-heads // 16) <= 16 or heads <= 16
    if few:
        width, records, warps, stages = 16, 16, 4, 3
    elif tokens * -(-heads // 64) >= PROGRAMS and heads > 32:
        return Config(64, 1, 16, 8, 3)
    else:
        width, records, warps, stages = 32, 16, 4, 3
    programs = tokens * -(-heads // width)
    wanted = min(16, max(1, PROGRAMS // programs), max(1, -(-most_records // records)))
    return Config(width, 1 << (wanted.bit_length() - 1), records, warps, stages)
