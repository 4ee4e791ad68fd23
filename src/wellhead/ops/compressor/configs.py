"""Tiles of the compressor's decode step, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`rows` rows of the ring are pooled at a time."""

    rows: int
    num_warps: int
    num_stages: int = 2


def choose_config(ratio: int, dim: int) -> Config:
    """Ratio 4: the whole ring of eight. Ratio 128: sixteen rows, enough loads in flight for one program a request."""
    return Config(rows=8 if ratio == 4 else 16, num_warps=4 if dim == 128 else 8)
