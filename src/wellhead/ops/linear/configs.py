"""Which product kernel and which tile, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`tokens` rows a program (a power of two), `rows` weight rows, `inputs` a step; gemv: on CUDA cores."""

    gemv: bool
    tokens: int
    rows: int
    inputs: int
    num_warps: int
    num_stages: int


def choose_config(tokens: int, n: int, k: int, *, rounds: bool = False) -> Config:
    """The same for every number of tokens up to the next power of two; tiles measured on an H100 (docs/log.md).

    One token is a matrix-vector product on CUDA cores: about 64 bytes of weights a thread, which it holds at once.
    """
    padded = min(64, 1 << max(0, tokens - 1).bit_length())
    many = n >= 16384
    if padded == 1:
        if k % 4096 == 0 and (k > 4096 or n < 2048):
            return Config(True, 1, 2, 4096, 4, 1)
        if k % 2048 == 0 and k > 2048:
            return Config(True, 1, 2, 2048, 2, 1)
        if k % 1024 == 0 and k > 1024:
            return Config(True, 1, 4, 1024, 4, 1)
        inputs = next(step for step in (512, 256, 128) if k % step == 0)
        return Config(True, 1, 8, inputs, inputs // 256 or 1, 1)
    if padded == 64:
        if many:
            return Config(False, 64, 64, 128, 4, 3) if rounds else Config(False, 64, 64, 128, 8, 4)
        return Config(False, 64, 32, 128, 4, 5)
    return Config(False, max(16, padded), 64, 128, 2, 3) if many else Config(False, max(16, padded), 16, 128, 2, 6)
