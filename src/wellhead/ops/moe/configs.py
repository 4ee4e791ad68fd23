"""Tiles of the expert kernels, from the sizes and what the card multiplies with."""

from __future__ import annotations

from dataclasses import dataclass

FEW_TOKENS = 64  # `few_tokens` of a card without warp-group products
LEAST, UNIT = 256, 128  # d and m are multiples of UNIT from LEAST on
WARP_GROUP_COLUMNS = 16  # the fewest for which Triton takes a warp-group product


@dataclass(frozen=True)
class Config:
    """`group` tokens of one expert share a program's weights; `rows` weight rows and `inputs` inputs a step."""

    group: int
    rows: int
    down_rows: int
    inputs: int
    down_inputs: int
    num_stages: int
    num_warps: int = 4


def few_tokens(warp_groups: bool) -> int:
    """The most tokens whose plan streams each expert once a few tokens; beyond, blocks of slots meet its weights.

    256 is measured on an H100, against the products in bf16. Elsewhere 64 is not measured.
    """
    return 256 if warp_groups else FEW_TOKENS


def choose_config(tokens: int, top_k: int, experts: int, d: int, m: int, warp_groups: bool) -> Config:
    """Groups as large as an expert is likely to be shared: tokens * top_k / experts, up to eight.

    Warp-group products of FP8 want 16 columns, so one token has as many blocks a step where the card has them
    (`warp_groups`) and the sizes allow it; four blocks are too few columns for a token alone. With them more than
    FEW_TOKENS take 256 inputs a step: 64 columns of sums, which only warp groups hold in registers. Tiles measured on
    an H100 (docs/log.md).
    """
    if tokens > FEW_TOKENS and warp_groups:
        return Config(8, 128, 128, _step(d, 256), _step(m, 256), 3)
    sharing = tokens * top_k / experts
    inputs, down_inputs = (_step(size, 512 if warp_groups else 256) for size in (d, m))
    if (tokens == 1 or sharing <= 0.5) and min(inputs, down_inputs) > UNIT:
        return Config(1, 64, 64, inputs, down_inputs, 3)
    if tokens == 1 or sharing <= 1.5:
        return Config(2, 64, 64, _step(d, 256), _step(m, 256), 3)
    return Config(4, 128, 128, 128, 128, 4) if sharing <= 2.5 else Config(8, 128, 128, 128, 128, 4)


def _step(size: int, most: int) -> int:
    """The most inputs a step that `size` is made of: 512, 256 or 128."""
    return next(step for step in (512, 256, UNIT) if step <= most and size % step == 0)
