"""How far counts are from what was expected."""

from __future__ import annotations

import torch


def chi_square(counts: torch.Tensor, probability: torch.Tensor) -> float:
    """As deviations of a normal distribution (Wilson and Hilferty 1931); nothing may be counted where nothing is
    expected.
    """
    expected = probability * counts.sum()
    assert not counts[expected == 0].any()
    kept = expected > 0
    freedom = max(1, int(kept.sum()) - 1)
    statistic = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
