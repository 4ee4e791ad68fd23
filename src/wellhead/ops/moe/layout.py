"""The orders in which the expert kernels read: gate and up rows in turn, so that one tile holds both; and activations
with the even inputs of each 32 in front of the odd ones, as the low and the high nibbles of MXFP4 have them.
"""

from __future__ import annotations

import torch


def interleave(w1: torch.Tensor, w3: torch.Tensor) -> torch.Tensor:
    """[..., m, c] twice -> [..., 2m, c]: row 2i is gate row i, row 2i + 1 up row i; codes and scales alike."""
    if w1.shape != w3.shape or w1.dtype != w3.dtype:
        raise ValueError(f"w1 {w1.dtype} {tuple(w1.shape)} and w3 {w3.dtype} {tuple(w3.shape)} must be alike")
    return torch.stack((w1, w3), dim=-2).flatten(-3, -2)


def separate(w13: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `interleave`."""
    if w13.shape[-2] % 2:
        raise ValueError(f"w13 has {w13.shape[-2]} rows, expected an even number")
    w1, w3 = w13.unflatten(-2, (-1, 2)).unbind(-2)
    return w1.contiguous(), w3.contiguous()


def halves(codes: torch.Tensor) -> torch.Tensor:
    """[..., k] of one-byte elements -> the same with inputs 0, 2, .. 30, 1, 3, .. 31 of each 32; k a multiple of 32."""
    split = codes.view(torch.uint8).unflatten(-1, (-1, 16, 2)).transpose(-1, -2)
    return split.reshape(codes.shape).view(codes.dtype)
