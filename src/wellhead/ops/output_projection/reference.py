"""Grouped output projection: the heads of each group have a product of their own."""

from __future__ import annotations

import torch

from wellhead.ops.linear import reference as linear


def project(o: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """z [T, G, N] in o's dtype: o [T, H, D], turned back by its positions, weight [G, N, H/G D].

    The product is fp32 and rounded once. Group g takes heads g H/G .. (g + 1) H/G - 1.
    """
    return linear.grouped(o.flatten(1).unflatten(-1, (weight.shape[0], -1)), weight)
