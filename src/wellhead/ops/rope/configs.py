"""How many heads share one token's angles."""

from __future__ import annotations


def heads_of(heads: int) -> int:
    """Heads of a program: the next power of two up to 4, one pair a thread of four warps."""
    return min(4, 1 << max(0, heads - 1).bit_length())
