"""RMS norm and rounding to E4M3 of whole rows, one program a row: the sum of squares is taken once, in one order."""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import round_groups


@triton.jit
def store_rounded(value, codes, halves, scale, row, D: tl.constexpr, BLOCK: tl.constexpr):
    """E4M3 codes of the first D of one row fp32 [BLOCK], in order and as halves (either may be None), and scales."""
    column, group = tl.arange(0, BLOCK), tl.arange(0, BLOCK // 128)
    place, inside = row * D + column[None, :], (column < D)[None, :]
    found, exponent = round_groups(tl.reshape(value, (1, BLOCK)), 1, BLOCK, 128)
    if codes is not None:
        tl.store(codes + place, found, mask=inside)
    if halves is not None:
        # rounded again: of codes that are stored twice, ptxas 12.8 takes every second one from a stale register
        turned = tl.permute(tl.reshape(value, (BLOCK // 32, 16, 2)), (0, 2, 1))
        found, _ = round_groups(tl.reshape(turned, (1, BLOCK)), 1, BLOCK, 128)
        tl.store(halves + place, found, mask=inside)
    tl.store(scale + row * (D // 128) + group[None, :], exponent.to(tl.uint8), mask=(group < D // 128)[None, :])


@triton.jit
def norm_quant_kernel(
    x, weight, normed, codes, halves, scale, eps,
    X_STRIDE,
    D: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """codes E4M3 [T, D] and scale u8 [T, D / 128] of x bf16 rows, X_STRIDE apart; BLOCK is D or the next power of two.

    With `weight` (bf16 [D]) the row is normed and rounded to bf16 first, and stored so where `normed` is given.
    `halves` are the codes with the even inputs of each 32 in front of the odd ones, the order of MXFP4's nibbles.
    """
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < D
    if weight is not None:
        norm = tl.load(weight + column, mask=inside, other=0.0)
    after_producers(PDL)
    value = tl.load(x + row * X_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    if weight is not None:
        value *= tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)
        value *= norm.to(tl.float32)
        rounded = value.to(tl.bfloat16)
        if normed is not None:
            tl.store(normed + row * D + column, rounded, mask=inside)
        value = rounded.to(tl.float32)
    store_rounded(value, codes, halves, scale, row, D, BLOCK)
