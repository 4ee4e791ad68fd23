"""E4M3 (float8_e4m3fn): sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinity, largest value 448.

Source: OCP 8-bit Floating Point Specification v1.0. torch's cast rounds to nearest even but turns values above 464
into NaN, so every cast here clamps first.
"""

from __future__ import annotations

import torch

E4M3_MAX = 448.0


def cast(x: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn of clamp(x, -448, 448), round to nearest even. NaN stays NaN."""
    return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def decode(codes: torch.Tensor) -> torch.Tensor:
    """fp32 value of E4M3 codes held as `float8_e4m3fn` or as their `uint8` bytes."""
    if codes.dtype == torch.uint8:
        codes = codes.view(torch.float8_e4m3fn)
    if codes.dtype != torch.float8_e4m3fn:
        raise ValueError(f"E4M3 codes are float8_e4m3fn or uint8, got {codes.dtype}")
    return codes.float()
