"""Tiles of the compressor, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`rows` rows are pooled at a time."""

    rows: int
    num_warps: int
    num_stages: int = 2


def choose_config(ratio: int, dim: int) -> Config:
    """Ratio 4: all eight. Ratio 128: sixteen rows, enough loads in flight for one program a request."""
    return Config(rows=8 if ratio == 4 else 16, num_warps=4 if dim == 128 else 8)


@dataclass(frozen=True)
class PrefillConfig:
    """`rows` pooled at a time, as in decode; then `tokens` x `columns` of the projection kept at a time."""

    rows: int
    num_warps: int
    columns: int
    tokens: int = 16
    keep_warps: int = 8
    num_stages: int = 2


def choose_prefill_config(ratio: int, dim: int) -> PrefillConfig:
    """The decode step's tile: then a block's entry has the same sums, in the same order, in both."""
    decode = choose_config(ratio, dim)
    return PrefillConfig(decode.rows, decode.num_warps, columns=min(dim, 512))
