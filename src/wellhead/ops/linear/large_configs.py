"""Which tile the product for many tokens takes, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

SMALL_TOKENS = 64  # up to here `configs.choose_config`
FILLS_A_CARD = 128  # tiles


@dataclass(frozen=True)
class LargeConfig:
    """`tokens` by `rows` of outputs a program; `group` row tiles share the columns that run at the same time."""

    tokens: int
    rows: int
    group: int
    num_warps: int
    num_stages: int


def choose_large(tokens: int, n: int) -> LargeConfig:
    """The large tile moves half the bytes per product; the small one where the large would leave multiprocessors idle.

    The same for every number of tokens up to the next power of two.
    """
    padded = 1 << (tokens - 1).bit_length()
    if -(-padded // 128) * -(-n // 128) >= FILLS_A_CARD:
        return LargeConfig(128, 128, 8, 8, 4)
    return LargeConfig(64, 64, 16, 4, 4)
