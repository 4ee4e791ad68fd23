"""RMS norm and rounding to E4M3 as a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.card import launch
from wellhead.ops.checks import expect, row_stride
from wellhead.ops.norm_quant.configs import block_of, warps_of

MOST = 16384


@dataclass(frozen=True)
class Rounded:
    """Where rounded rows go: codes E4M3 [T, d], scale u8 [T, d / 128], and halves E4M3 [T, d] or None (`NormQuant`)."""

    codes: torch.Tensor
    scale: torch.Tensor
    halves: torch.Tensor | None = None


@dataclass(frozen=True)
class NormQuant:
    """codes, scale = quantize_rows(bf16(x * rsqrt(mean(x^2) + eps) * weight)), or quantize_rows(x) without a weight.

    run(x bf16 [T, d], weight bf16 [d] or None, codes E4M3 [T, d] or None, scale u8 [T, d / 128], normed bf16 [T, d] or
    None, halves E4M3 [T, d] or None): `halves` receives the codes with the even inputs of each 32 in front of the odd
    ones, as `ops.moe` reads them.
    The norm is fp32 and rounded once to bf16; codes and scale are bit for bit `formats.block_fp8.quantize_rows` of that
    row. Rows of x may lie further apart than d (a slice of a wider product); everything else is contiguous. normed
    may be x where that is contiguous. A row's bits depend on that row alone; it must be finite. T may be 0. One launch;
    allocates and synchronises nothing.
    """

    d: int
    eps: float

    def run(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        codes: torch.Tensor | None,
        scale: torch.Tensor,
        normed: torch.Tensor | None = None,
        halves: torch.Tensor | None = None,
    ) -> None:
        from wellhead.ops.norm_quant import kernels

        tokens = x.shape[0]
        stride = row_stride("x", x, self.d, torch.bfloat16)
        for name, value in (("codes", codes), ("halves", halves)):
            if value is not None:
                expect(name, value, (tokens, self.d), torch.float8_e4m3fn)
        expect("scale", scale, (tokens, self.d // 128), torch.uint8)
        if weight is not None:
            expect("weight", weight, (self.d,), torch.bfloat16)
        if normed is not None:
            if weight is None:
                raise ValueError("normed is given without a weight; expected both, since x itself is the row rounded")
            expect("normed", normed, (tokens, self.d), torch.bfloat16)
        if tokens:
            kernels.norm_quant_kernel[(tokens,)](
                x, weight, normed, as_bytes(codes), as_bytes(halves), scale, self.eps, stride,
                **constants(self.d), num_warps=warps_of(self.d), **launch(early=True),
            )  # fmt: skip


def as_bytes(codes: torch.Tensor | None) -> torch.Tensor | None:
    return None if codes is None else codes.view(torch.uint8)


def constants(d: int) -> dict[str, int]:
    """The constexpr arguments."""
    return {"D": d, "BLOCK": block_of(d)}


def supports(d: int) -> str | None:
    """None, or why rows of that width cannot run."""
    return None if 128 <= d <= MOST and d % 128 == 0 else f"d={d}: a multiple of 128 from 128 to {MOST}"


def plan(d: int, eps: float) -> NormQuant:
    """ValueError names what is supported."""
    why = supports(d)
    if why is not None:
        raise ValueError(f"norm_quant cannot be planned: {why}")
    if not eps >= 0:
        raise ValueError(f"norm_quant cannot be planned: eps={eps}; expected 0 or more")
    return NormQuant(d, eps)
