"""Which kernel and which tile the output projection takes, from the number of tokens alone."""

from __future__ import annotations

from dataclasses import dataclass

FEW_TOKENS = 256  # up to here tiles are too narrow to round z, whose scales are of 128 channels
TILE = 64  # tokens of a program at most, up to there
GEMV_TOKENS = 2  # every few weight rows read all tokens' activations again: beyond this L2 is the limit, not the memory


@dataclass(frozen=True)
class Config:
    """`tokens` and weight `rows` a program; gemv or tensor cores."""

    gemv: bool
    tokens: int
    rows: int
    num_warps: int
    num_stages: int


def choose_config(tokens: int) -> Config:
    """The same for every number of tokens up to the next power of two."""
    padded = 1 << max(0, tokens - 1).bit_length()
    if padded <= GEMV_TOKENS:
        return Config(True, padded, 4, 8, 1)
    if padded <= 16:
        return Config(False, 16, 32, 2, 6)
    if padded <= FEW_TOKENS:
        return Config(False, min(TILE, padded), 64, 4, 5 if padded == 32 else 4)
    return Config(False, 128, 128, 8, 3)
