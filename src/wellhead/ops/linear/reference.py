"""Linear layers over dequantised weights, with the activation quantisation that the checkpoint's kernels apply.

The published FP8 product is sum over k-blocks of (sum a b in fp32) * s_a * s_b: with both sides dequantised exactly
(an E4M3 significand times a power of two) it is an fp32 product, up to the order of the sums.
"""

from __future__ import annotations

import torch

from wellhead.formats import block_fp8


def round_input(x: torch.Tensor) -> torch.Tensor:
    """What an FP8 kernel sees of x: E4M3 with a power-of-two scale per 128 of the last dimension, dtype kept."""
    return block_fp8.round_rows(x, block_fp8.BLOCK)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y = x W^T in fp32, rounded once to x's dtype: x [..., K], weight [O, K]."""
    return (x.float() @ weight.float().T).to(x.dtype)


def grouped(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Per-group product of the output projection: x [T, G, K], weight [G, O, K] -> [T, G, O] in x's dtype."""
    return torch.einsum("tgk,gok->tgo", x.float(), weight.float()).to(x.dtype)
