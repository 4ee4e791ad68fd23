"""RMSNorm. Source: Zhang and Sennrich 2019; V4 multiplies by the weight itself (not 1 + weight)."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight over the last dimension, in fp32, rounded once to x's dtype.

    `weight` None is the unweighted norm that V4 applies to each query head.
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed if weight is None else normed * weight.float()).to(x.dtype)
