"""What follows the projection of a hyper-connection, per token: the contraction of its streams and, beside it, the
weights that mix them at the next site, in a launch of their own or in the same one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.norm_quant.kernels import store_rounded


@triton.jit
def sinkhorn(logits, is_comb, iterations, eps):
    """Softmax of each row (+ eps), a column step, then iterations - 1 times a row and a column step.

    logits [8, 4]; rows that are not `is_comb` are zero throughout and add nothing.
    """
    shifted = tl.exp(logits - tl.max(logits, 1)[:, None])
    c = tl.where(is_comb, shifted / tl.sum(shifted, 1)[:, None] + eps, 0.0)
    c = c / (tl.sum(c, 0)[None, :] + eps)
    for _ in range(iterations - 1):
        c = c / (tl.sum(c, 1)[:, None] + eps)
        c = c / (tl.sum(c, 0)[None, :] + eps)
    return c


@triton.jit
def pick(values, index, wanted):
    """The one element of `values` whose index is `wanted`, as a scalar."""
    return tl.sum(tl.sum(tl.where(index == wanted, values, 0.0), 1), 0)


@triton.jit
def projections(
    partial_ptr, token, index, norm_eps,
    D: tl.constexpr, M: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """fp32 [COLUMNS / 4, 4]: fn . x over the RMS of x. Row 0 is pre, row 1 is post, rows 2 to 5 are comb."""
    split = tl.arange(0, SPLITS_PADDED)
    partial = tl.load(
        partial_ptr + (token * SPLITS + split[:, None, None]) * COLUMNS + index[None, :, :],
        mask=split[:, None, None] < SPLITS, other=0.0,
    )  # fmt: skip
    z = tl.sum(partial, 0)
    return z * tl.rsqrt(pick(z, index, M) / (4 * D) + norm_eps)


@triton.jit
def _five_sums(a0, a1, a2, a3, a4, b0, b1, b2, b3, b4):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4


@triton.jit
def contract_kernel(
    streams_ptr, partial_ptr, base_ptr, scale_ptr, norm_ptr, out_ptr, codes_ptr, halves_ptr, code_scale_ptr,
    norm_eps, hc_eps,
    D: tl.constexpr, M: tl.constexpr, NORM: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token a program: its streams contracted by pre, normed and rounded."""
    token = tl.program_id(0).to(tl.int64)
    channel, split = tl.arange(0, BLOCK_D), tl.arange(0, SPLITS_PADDED)
    inside, there = channel < D, split < SPLITS
    base0, base1, base2, base3 = tl.load(base_ptr), tl.load(base_ptr + 1), tl.load(base_ptr + 2), tl.load(base_ptr + 3)
    scale = tl.load(scale_ptr)
    if NORM:
        norm = tl.load(norm_ptr + channel, mask=inside, other=0.0)
    after_producers(PDL)
    x0 = tl.load(streams_ptr + token * 4 * D + channel, mask=inside, other=0.0)  # on their way while the weights form
    x1 = tl.load(streams_ptr + (token * 4 + 1) * D + channel, mask=inside, other=0.0)
    x2 = tl.load(streams_ptr + (token * 4 + 2) * D + channel, mask=inside, other=0.0)
    x3 = tl.load(streams_ptr + (token * 4 + 3) * D + channel, mask=inside, other=0.0)
    part = partial_ptr + (token * SPLITS + split) * COLUMNS
    z0, z1, z2, z3, squares = tl.reduce(  # in one pass: every pass more is two barriers
        (
            tl.load(part, mask=there, other=0.0), tl.load(part + 1, mask=there, other=0.0),
            tl.load(part + 2, mask=there, other=0.0), tl.load(part + 3, mask=there, other=0.0),
            tl.load(part + M, mask=there, other=0.0),
        ), 0, _five_sums,
    )  # fmt: skip
    scale *= tl.rsqrt(squares / (4 * D) + norm_eps)
    mixed = (tl.sigmoid(z0 * scale + base0) + hc_eps) * x0.to(tl.float32)
    mixed += (tl.sigmoid(z1 * scale + base1) + hc_eps) * x1.to(tl.float32)
    mixed += (tl.sigmoid(z2 * scale + base2) + hc_eps) * x2.to(tl.float32)
    mixed += (tl.sigmoid(z3 * scale + base3) + hc_eps) * x3.to(tl.float32)
    u = mixed.to(tl.bfloat16)
    if NORM:
        wide = u.to(tl.float32)
        wide *= tl.rsqrt(tl.sum(wide * wide, 0) / D + norm_eps)
        u = (wide * norm.to(tl.float32)).to(tl.bfloat16)
    tl.store(out_ptr + token * D + channel, u, mask=inside)
    if codes_ptr is not None:
        store_rounded(u.to(tl.float32), codes_ptr, halves_ptr, code_scale_ptr, token, D, BLOCK_D)


@triton.jit(do_not_specialize=["iterations"])
def mixing_kernel(
    partial_ptr, base_ptr, scale_ptr, post_ptr, comb_ptr, norm_eps, hc_eps, iterations,
    D: tl.constexpr, M: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr, COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One token a program: post and comb, 39 dependent Sinkhorn steps that the contraction need not see."""
    token = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, COLUMNS // 4), tl.arange(0, 4)
    index = row[:, None] * 4 + column[None, :]
    base = tl.load(base_ptr + index, mask=index < M, other=0.0)
    post_scale, comb_scale = tl.load(scale_ptr + 1), tl.load(scale_ptr + 2)
    after_producers(PDL)
    z = projections(partial_ptr, token, index, norm_eps, D, M, SPLITS, SPLITS_PADDED, COLUMNS)
    post = 2.0 * tl.sigmoid(z * post_scale + base)
    tl.store(post_ptr + token * 4 + index - 4, post, mask=(index >= 4) & (index < 8))
    is_comb = (index >= 8) & (index < 24)
    comb = sinkhorn(tl.where(is_comb, z * comb_scale + base, 0.0), is_comb, iterations, hc_eps)
    tl.store(comb_ptr + token * 16 + index - 8, comb, mask=is_comb)


@triton.jit(do_not_specialize=["iterations"])
def finish_kernel(
    streams_ptr, partial_ptr, base_ptr, scale_ptr, norm_ptr, out_ptr, codes_ptr, halves_ptr, code_scale_ptr,
    post_ptr, comb_ptr, norm_eps, hc_eps, iterations,
    D: tl.constexpr, M: tl.constexpr, NORM: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Both in one launch, for those who have no other stream to mix on. Grid (tokens, 2)."""
    if tl.program_id(1) == 0:
        contract_kernel(
            streams_ptr, partial_ptr, base_ptr, scale_ptr, norm_ptr, out_ptr, codes_ptr, halves_ptr, code_scale_ptr,
            norm_eps, hc_eps, D, M, NORM, SPLITS, SPLITS_PADDED, COLUMNS, BLOCK_D, PDL,
        )  # fmt: skip
    else:
        mixing_kernel(
            partial_ptr, base_ptr, scale_ptr, post_ptr, comb_ptr, norm_eps, hc_eps, iterations,
            D, M, SPLITS, SPLITS_PADDED, COLUMNS, PDL,
        )  # fmt: skip
