"""How a row is cut, from its width alone, so that a row's bits never depend on the batch."""

from __future__ import annotations


def block_of(d: int) -> int:
    """The next power of two: what one program holds."""
    return 1 << (d - 1).bit_length()


def warps_of(d: int) -> int:
    """Sixteen values a thread."""
    return max(1, block_of(d) // 512)
