"""How sparse attention is cut, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

RECORDS = 32  # a tile
PROGRAMS = 256  # two a multiprocessor of the cards this serves: they fill each other's waits


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
    keys_first: bool


def choose_config(tokens: int, heads: int, most_records: int) -> Config:
    """As many parts as fill the card, a power of two up to 32, a tile in each if they reach; one for many tokens.

    32 heads by four warps of eight, measured on an H100 against 16 and 64 (docs/log.md): two such programs share a
    multiprocessor there, on SM120, with 99 KB, it is one. A token of few heads is quicker in more, smaller programs.
    """
    tokens = max(1, tokens)
    small = heads <= 16 or tokens * -(-heads // 16) <= 8
    width, stages = (16, 2) if small else (32, 1)
    programs = tokens * -(-heads // width)
    parts = 1
    while parts < 32 and 2 * parts * programs <= PROGRAMS and parts * RECORDS < most_records:
        parts *= 2
    return Config(width, parts, RECORDS, 4, stages, keys_first=not small)
