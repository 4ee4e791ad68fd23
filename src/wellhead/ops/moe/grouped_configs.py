"""Tiles of the kernels over blocks of slots, from the sizes and what the card multiplies with.

256 gate and up rows are 128 hidden channels: what has to be together where a product rounds the hidden vector itself.
"""

from __future__ import annotations

from wellhead.ops.moe.grouped import Tiles


def sharing(tokens: int, top_k: int, experts: int) -> float:
    """Slots of an expert if the choice is even."""
    return tokens * top_k / experts


def choose_prefill(tokens: int, top_k: int, experts: int, native: bool, warp_groups: bool) -> Tiles:
    """Blocks as large as an expert is likely to fill; wider than 64 only where a program need not hold 256 rows.

    Four warps hold 128 slots of 128 rows where the card has warp-group products; without those they would spill. Tiles
    of the bf16 products measured on an H100.
    """
    shared = sharing(tokens, top_k, experts)
    if native:
        return Tiles(32 if shared <= 32 else 64, 256, 128, 64, 8, 4, 4)
    if shared <= 64:
        return Tiles(32 if shared <= 32 else 64, 128, 128, 64, 4, 4, 4)
    return Tiles(128, 128, 128, 64, 4, 4, 3) if warp_groups else Tiles(128, 128, 128, 64, 8, 8, 4)


def choose_fp8(tokens: int, top_k: int, experts: int) -> Tiles:
    """16 slots are the narrowest product and enough to stream; more than that in an expert is arithmetic."""
    if sharing(tokens, top_k, experts) <= 12:
        return Tiles(16, 64, 64, 128, 4, 4, 4)
    return Tiles(64, 256, 128, 128, 8, 4, 3)
