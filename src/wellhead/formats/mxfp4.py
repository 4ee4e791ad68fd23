"""MXFP4: E2M1 elements with one UE8M0 scale per 32 consecutive elements of the last dimension.

value = e2m1 * 2^(byte - 127) (OCP Microscaling Formats v1.0). V4 stores its routed experts this way, blocks along the
input dimension. The scale rule is that of the published quantiser: 2^ceil(log2(max(amax, 6 * 2^-126) / 6)).
"""

from __future__ import annotations

import torch

from wellhead.formats import e2m1, ue8m0

BLOCK = 32
_AMAX_FLOOR = 6.0 * 2.0**-126


def block_scale(x: torch.Tensor) -> torch.Tensor:
    """uint8 UE8M0 scales [..., K/32] of x [..., K]."""
    amax = _blocks(x).abs().amax(-1)
    return ue8m0.exponent_ceil(amax.clamp_min(_AMAX_FLOOR) * (1.0 / e2m1.E2M1_MAX))


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., K] -> (packed uint8 [..., K/2], scale uint8 [..., K/32]); K a multiple of 32."""
    scale = block_scale(x)
    codes = e2m1.cast(_blocks(x) / ue8m0.decode(scale).unsqueeze(-1))
    return e2m1.pack(codes.flatten(-2)), scale


def dequantize(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp32 [..., K] from packed [..., K/2] and scale [..., K/32]."""
    codes = e2m1.unpack(packed)
    if codes.shape[-1] != scale.shape[-1] * BLOCK:
        raise ValueError(
            f"MXFP4 needs one scale per {BLOCK} elements: packed {tuple(packed.shape)} holds {codes.shape[-1]} "
            f"elements a row, scale {tuple(scale.shape)} covers {scale.shape[-1] * BLOCK}"
        )
    return (_blocks(e2m1.decode(codes)) * ue8m0.decode(scale).unsqueeze(-1)).flatten(-2)


def round_blocks(x: torch.Tensor) -> torch.Tensor:
    """Quantise and read back, dtype kept: what a consumer of the stored bytes sees."""
    return dequantize(*quantize(x)).to(x.dtype)


def _blocks(x: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] % BLOCK:
        raise ValueError(f"MXFP4 needs a last dimension that is a multiple of {BLOCK}, got {x.shape[-1]}")
    return x.float().unflatten(-1, (-1, BLOCK))
