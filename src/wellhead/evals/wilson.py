"""Wilson score interval of a proportion.

For k right answers of n, with z the normal quantile (1.959964 for 95 %):

    centre = (k/n + z^2/2n) / (1 + z^2/n)
    half   = z / (1 + z^2/n) * sqrt( (k/n)(1 - k/n)/n + z^2/4n^2 )

Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
Unlike the usual normal interval it stays inside [0, 1] and has a width at k = 0 and k = n.
"""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """(low, high) of right/count, 95 %. Raises ValueError unless 0 <= right <= count and count > 0."""
    if count <= 0 or not 0 <= right <= count:
        raise ValueError(f"wilson_interval needs 0 <= right <= count and count > 0, got {right} of {count}")
    share, z = right / count, NormalDist().inv_cdf(0.975)
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At the two ends the exact bound is 0 or 1; rounding must not leave it a hair inside or outside.
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == count else centre + half
    return low, high
