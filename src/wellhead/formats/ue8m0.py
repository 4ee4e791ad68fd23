"""UE8M0: a scale that is a power of two, stored as its biased exponent in one byte.

value = 2^(byte - 127); byte 255 is NaN (OCP Microscaling Formats v1.0, section 5.4.1).
"""

from __future__ import annotations

import torch


def as_bytes(scale: torch.Tensor) -> torch.Tensor:
    """The uint8 view of a scale tensor stored as `uint8` or `float8_e8m0fnu`."""
    if scale.dtype == torch.uint8:
        return scale
    if scale.dtype == torch.float8_e8m0fnu:
        return scale.view(torch.uint8)
    raise ValueError(f"UE8M0 scales are uint8 or float8_e8m0fnu, got {scale.dtype}")


def decode(scale: torch.Tensor) -> torch.Tensor:
    """fp32 2^(byte - 127), exact for bytes 0..254 (byte 0 is the subnormal 2^-127); byte 255 gives NaN."""
    exponent = as_bytes(scale).to(torch.int32)
    bits = torch.where(exponent == 0, 1 << 22, exponent << 23)
    value = bits.view(torch.float32)
    return torch.where(exponent == 255, torch.nan, value)


def power_of_two_ceil(x: torch.Tensor) -> torch.Tensor:
    """fp32 smallest power of two >= x, for normal fp32 x > 0 up to 2^127: `decode(exponent_ceil(x))` in one pass."""
    return ((x.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def exponent_ceil(x: torch.Tensor) -> torch.Tensor:
    """uint8 byte of the smallest power of two >= x, for fp32 x > 0 (2^-127 at least, 2^127 at most).

    Read off the bit pattern: the exponent field, plus one when any mantissa bit is set; no logarithm is rounded.
    """
    bits = x.to(torch.float32).contiguous().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    return exponent.clamp(0, 254).to(torch.uint8)
