"""How many heads share one token's angles."""

from __future__ import annotations

HEADS = 4  # one pair a thread of four warps
WARPS = 4
