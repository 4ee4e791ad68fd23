"""Which bf16 product and which tile, from the sizes alone."""

from __future__ import annotations

from wellhead.ops.linear.configs import Config

VOCABULARY = 16384  # rows from which there are tiles enough for every multiprocessor


def choose_config(tokens: int, n: int, k: int) -> Config:
    """The same for every number of tokens up to the next power of two; few rows are cut fine to fill the card."""
    padded = 1 << max(0, tokens - 1).bit_length()
    if padded == 1 and n < VOCABULARY:
        steps = (4096, 2048, 1024, 512, 256, 128) if n <= 2048 else (2048, 1024, 512, 256, 128)
        return Config(True, 1, 4, next(step for step in steps if k % step == 0), 4, 1)
    padded = max(16, min(128, padded))
    wide = 256 if k % 256 == 0 else 128
    if padded == 128:
        return Config(False, 128, 128, 128, 8, 2) if n >= 4096 else Config(False, 128, 32, 128, 4, 2)
    if padded == 64:
        return Config(False, 64, 64, 128, 4, 2) if n >= 4096 else Config(False, 64, 32, wide, 4, 2)
    if n >= VOCABULARY:
        return Config(False, padded, 64, 128, 4 if padded == 16 else 2, 3)
    return Config(False, padded, 16, wide, 2, 4)
