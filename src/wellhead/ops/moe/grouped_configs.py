"""Tiles of the kernels over blocks of slots, from the sizes alone.

256 gate and up rows are 128 hidden channels: what has to be together for the rounding of the hidden vector.
"""

from __future__ import annotations

from wellhead.ops.moe.grouped import Tiles


def sharing(tokens: int, top_k: int, experts: int) -> float:
    """Slots of an expert if the choice is even."""
    return tokens * top_k / experts


def choose_prefill(tokens: int, top_k: int, experts: int, rounded: bool) -> Tiles:
    """Blocks as large as an expert is likely to fill; wider than 64 only where a program need not hold 256 rows."""
    shared = sharing(tokens, top_k, experts)
    group = 32 if shared <= 32 else 64 if rounded or shared <= 128 else 128
    rows, warps = (256, 8) if rounded else (128, 8 if group == 128 else 4)
    return Tiles(group, rows, 128, 64, warps, 8 if group == 128 else 4, 4)


def choose_fp8(tokens: int, top_k: int, experts: int) -> Tiles:
    """16 slots are the narrowest product and enough to stream; more than that in an expert is arithmetic."""
    if sharing(tokens, top_k, experts) <= 12:
        return Tiles(16, 64, 64, 128, 4, 4, 4)
    return Tiles(64, 256, 128, 128, 8, 4, 3)
