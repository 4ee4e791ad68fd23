"""How many query heads one program norms and turns."""

from __future__ import annotations

HEADS = 4  # sixteen values a thread of four warps, one head a warp
WARPS = 4
