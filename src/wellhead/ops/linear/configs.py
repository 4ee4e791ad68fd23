"""Which product kernel and which tile, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

GEMV_TOKENS = 4  # one multiply-add a token and weight: beyond this the CUDA cores are the limit, not the memory


@dataclass(frozen=True)
class Config:
    """`tokens` rows a program (a power of two), `rows` weight rows, `inputs` a step; gemv or tensor cores."""

    gemv: bool
    tokens: int
    rows: int
    inputs: int
    num_warps: int
    num_stages: int


def choose_config(tokens: int, n: int, k: int) -> Config:
    """The same for every number of tokens up to the next power of two."""
    padded = min(64, 1 << max(0, tokens - 1).bit_length())
    if padded <= GEMV_TOKENS:
        widest = 512 if padded == 4 else 1024
        inputs = next(step for step in (1024, 512, 256, 128) if k % step == 0 and step <= widest)
        return Config(True, padded, 8 if padded == 1 else 4, inputs, 4, 3)
    return Config(False, padded, 128 if padded == 64 else 64, 128, 8 if padded == 64 else 4, 3 if padded == 64 else 4)
