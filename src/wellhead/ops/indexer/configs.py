"""How index logits are cut, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

PROGRAMS = 512  # two to three for every multiprocessor of the cards this serves
PAGE = 64
QUERY_ROWS = {"fp8": 256, "fp4": 128}  # group * padded heads at most; FP4 holds the next page in registers too


@dataclass(frozen=True)
class Config:
    """`group` tokens of `heads` (padded) heads share a program's keys; `programs` share the pages of a group."""

    group: int
    heads: int
    programs: int
    num_warps: int
    num_stages: int


def choose_config(tokens: int, heads: int, columns: int, layout: str, *, chunked: bool) -> Config:
    """One token a program unless requests have several tokens (`chunked`); programs enough to fill the card."""
    padded = max(8, 1 << (heads - 1).bit_length())
    group = min(8, QUERY_ROWS[layout] // padded) if chunked else 1
    padded = max(padded, 16 // group)
    groups = -(-max(tokens, 1) // group)
    programs = min(max(1, columns // PAGE), max(1, PROGRAMS // groups))
    wide = group * padded > 64
    return Config(group, padded, programs, num_warps=8 if wide else 4, num_stages=2 if wide else 3)


VECTORS = 16  # query heads that one program rounds
QUERY_WARPS = 8  # a token of 64 heads has four such programs, which its step waits for
