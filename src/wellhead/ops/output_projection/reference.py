"""Grouped output projection: heads are turned back by their token's position, then each group has its own product."""

from __future__ import annotations

import torch

from wellhead.ops.linear import reference as linear
from wellhead.ops.rope import reference as rope


def project(o: torch.Tensor, positions: torch.Tensor, freqs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """z [T, G, N] in o's dtype: o [T, H, D], positions [T], freqs fp32 [n], weight [G, N, H/G D].

    The inverse rotation of the last 2n dims of each head is fp32 and rounded once to o's dtype; the product is fp32 and
    rounded once. Group g takes heads g H/G .. (g + 1) H/G - 1.
    """
    turned = rope.apply(o, positions, freqs, inverse=True)
    return linear.grouped(turned.flatten(1).unflatten(-1, (weight.shape[0], -1)), weight)
