"""E4M3 with power-of-two scales: weights per 128x128 block, activation and KV rows per group of the last dimension.

Scale rule (published quantiser): s = 2^ceil(log2(max(amax, 1e-4) / 448)), element = E4M3(clamp(x / s)).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wellhead.formats import e4m3, ue8m0

BLOCK = 128
AMAX_FLOOR = 1e-4


def group_scale(amax: torch.Tensor) -> torch.Tensor:
    """uint8 UE8M0 scale for a group whose largest magnitude is `amax`; 1.0 -> 2^-8, 448 -> 1, 449 -> 2."""
    return ue8m0.exponent_ceil(amax.float().clamp_min(AMAX_FLOOR) * (1.0 / e4m3.E4M3_MAX))


def quantize_rows(x: torch.Tensor, group: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., K] -> (float8_e4m3fn [..., K], uint8 scale [..., K/group]); K a multiple of `group`."""
    if x.shape[-1] % group:
        raise ValueError(f"row quantisation needs a last dimension that is a multiple of {group}, got {x.shape[-1]}")
    grouped = x.float().unflatten(-1, (-1, group))
    scale = group_scale(grouped.abs().amax(-1))
    return e4m3.cast(grouped / ue8m0.decode(scale).unsqueeze(-1)).flatten(-2), scale


def dequantize_rows(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp32 [..., K] of what `quantize_rows` returned; the group is K / scale.shape[-1]."""
    grouped = e4m3.decode(codes).unflatten(-1, (scale.shape[-1], -1))
    return (grouped * ue8m0.decode(scale).unsqueeze(-1)).flatten(-2)


def round_rows(x: torch.Tensor, group: int = BLOCK) -> torch.Tensor:
    """Quantise and read back, dtype kept. Exact in bf16: an E4M3 significand times a power of two."""
    grouped = x.float().unflatten(-1, (-1, group))
    amax = grouped.abs().amax(-1, keepdim=True).clamp_min(AMAX_FLOOR)
    scale = ue8m0.power_of_two_ceil(amax * (1.0 / e4m3.E4M3_MAX))
    return (e4m3.cast(grouped / scale).float() * scale).flatten(-2).to(x.dtype)


def quantize_weight(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """w [O, I] -> (float8_e4m3fn [O, I], uint8 scale [ceil(O/128), ceil(I/128)]); edges are zero-padded."""
    rows, cols = w.shape
    padded = F.pad(w.float(), (0, -cols % BLOCK, 0, -rows % BLOCK))
    tiles = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = group_scale(tiles.abs().amax((1, 3)))
    codes = e4m3.cast(tiles / ue8m0.decode(scale)[:, None, :, None])
    return codes.flatten(2).flatten(0, 1)[:rows, :cols].contiguous(), scale


def dequantize_weight(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp32 [O, I]; `scale` holds UE8M0 bytes or, for V3-style checkpoints, fp32 multipliers."""
    rows, cols = codes.shape
    expected = (-(-rows // BLOCK), -(-cols // BLOCK))
    if tuple(scale.shape) != expected:
        raise ValueError(f"block FP8 weight {(rows, cols)} needs scales {expected}, got {tuple(scale.shape)}")
    multiplier = scale if scale.dtype == torch.float32 else ue8m0.decode(scale)
    expanded = multiplier.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]
    return e4m3.decode(codes) * expanded
