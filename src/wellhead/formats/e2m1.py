"""E2M1 (FP4): sign, 2 exponent bits, 1 mantissa bit; codes 0..7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and bit 3 is the sign.

Two codes share a byte, the even element in the low nibble (OCP Microscaling Formats v1.0, section 5.3.3).
"""

from __future__ import annotations

import torch

E2M1_MAX = 6.0
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def cast(x: torch.Tensor) -> torch.Tensor:
    """uint8 codes 0..15 nearest to x; halfway goes to the even code, beyond 6 saturates.

    Between codes c and c+1 a midpoint belongs to c when c is even, so midpoints above odd codes count as reached.
    """
    magnitude = x.float().abs()
    code = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for lower, midpoint in enumerate(_MIDPOINTS):
        above = magnitude > midpoint if lower % 2 == 0 else magnitude >= midpoint
        code += above.to(torch.uint8)
    return code | (torch.signbit(x).to(torch.uint8) << 3)


def decode(codes: torch.Tensor) -> torch.Tensor:
    """fp32 values of codes 0..15 (one code an element)."""
    table = torch.tensor(MAGNITUDES + tuple(-m for m in MAGNITUDES), device=codes.device)
    return table[codes.long()]


def pack(codes: torch.Tensor) -> torch.Tensor:
    """[..., K] codes -> [..., K/2] bytes, element 2k in the low nibble of byte k. K must be even."""
    if codes.shape[-1] % 2:
        raise ValueError(f"packing needs an even last dimension, got {codes.shape[-1]}")
    return (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """[..., K/2] bytes (uint8 or int8) -> [..., K] uint8 codes."""
    if packed.dtype not in (torch.uint8, torch.int8):
        raise ValueError(f"packed E2M1 is uint8 or int8, got {packed.dtype}")
    # not .view(): a strided int8 slice cannot be reinterpreted, a cast modulo 256 always can
    as_bytes = packed.to(torch.uint8) if packed.dtype == torch.int8 else packed
    return torch.stack((as_bytes & 15, as_bytes >> 4), dim=-1).flatten(-2)
