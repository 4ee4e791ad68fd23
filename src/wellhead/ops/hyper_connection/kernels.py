"""Hyper-connections: a split-K projection of the streams, then per token their contraction and, beside it, the weights
that mix them at the next site, in a launch of their own or in the same one.

The projection optionally writes the streams first (post + pre in one pass over them). Its sums are bf16 tensor-core
products of the bf16 streams with fn split into three bf16 parts, f0 + f1 + f2 = fn to 2^-24 of its size: every
product is exact in fp32. Every token's sums are taken in one order that depends on d alone: the tiles of 16 tokens
walk through the same instructions whatever the number of tokens. A partial row holds m <= 24 projections, then the sum
of squares, then padding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.addend_kernels import added_up
from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import settled
from wellhead.ops.norm_quant.kernels import store_rounded


@triton.jit
def mixed_stream(y, x0, x1, x2, x3, post_ptr, comb_ptr, rows, valid, k: tl.constexpr):
    """X'_k = post_k y + sum_j comb_jk X_j of a tile in fp32; post [T, 4], comb [T, 4, 4]."""
    mixed = tl.load(post_ptr + rows * 4 + k, mask=valid, other=0.0)[:, None] * y
    mixed += tl.load(comb_ptr + rows * 16 + k, mask=valid, other=0.0)[:, None] * x0
    mixed += tl.load(comb_ptr + rows * 16 + 4 + k, mask=valid, other=0.0)[:, None] * x1
    mixed += tl.load(comb_ptr + rows * 16 + 8 + k, mask=valid, other=0.0)[:, None] * x2
    mixed += tl.load(comb_ptr + rows * 16 + 12 + k, mask=valid, other=0.0)[:, None] * x3
    return mixed


@triton.jit
def fn_parts(fn_ptr, column, channel, D: tl.constexpr, M: tl.constexpr):
    """fn [M, D] as three bf16 parts [BLOCK, COLUMNS] whose sum is fn to 2^-24 of its size; the remainders are exact."""
    where = fn_ptr + column[None, :] * (4 * D) + channel[:, None]
    w = tl.load(where, mask=column[None, :] < M, other=0.0)
    high = w.to(tl.bfloat16)
    rest = w - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit(do_not_specialize=["tokens", "tiles"])
def project_kernel(
    streams_ptr, y_ptr, ids_ptr, last_ptr, first, count, post_ptr, comb_ptr, out_ptr, fn_ptr, partial_ptr,
    tokens, tiles,
    D: tl.constexpr, M: tl.constexpr, POST: tl.constexpr, PLACES: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """partial[t, split] = (fn . x, sum x^2) over channels [split*BLOCK, (split+1)*BLOCK) of all four streams.

    Grid (ceil(tokens / (TILE*tiles)), D / BLOCK). With POST the streams are mixed with y, rounded to bf16 and
    stored first; out may be the streams themselves, since a program reads a channel before it writes it. With PLACES
    y is `ops.addends` of so many rows a token.
    """
    split = tl.program_id(1)
    channel = split * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, COLUMNS)
    parts = (
        fn_parts(fn_ptr, column, channel, D, M),
        fn_parts(fn_ptr + D, column, channel, D, M),
        fn_parts(fn_ptr + 2 * D, column, channel, D, M),
        fn_parts(fn_ptr + 3 * D, column, channel, D, M),
    )
    after_producers(PDL)
    for tile in range(tiles):
        rows = (tl.program_id(0) * tiles + tile).to(tl.int64) * TILE + tl.arange(0, TILE)
        valid = rows < tokens
        offset = rows[:, None] * (4 * D) + channel[None, :]
        if POST:
            if PLACES > 0:
                inside = channel < D
                y = added_up(y_ptr, ids_ptr, last_ptr, rows, valid, channel, inside, D, first, count, PLACES)
            else:
                y = tl.load(y_ptr + rows[:, None] * D + channel[None, :], mask=valid[:, None], other=0.0)
            y = y.to(tl.float32)
            x0 = tl.load(streams_ptr + offset, mask=valid[:, None], other=0.0).to(tl.float32)
            x1 = tl.load(streams_ptr + offset + D, mask=valid[:, None], other=0.0).to(tl.float32)
            x2 = tl.load(streams_ptr + offset + 2 * D, mask=valid[:, None], other=0.0).to(tl.float32)
            x3 = tl.load(streams_ptr + offset + 3 * D, mask=valid[:, None], other=0.0).to(tl.float32)
        total = tl.zeros([TILE, COLUMNS], tl.float32)
        squares = tl.zeros([TILE, BLOCK], tl.float32)
        for k in tl.static_range(4):
            if POST:
                x = settled(mixed_stream(y, x0, x1, x2, x3, post_ptr, comb_ptr, rows, valid, k).to(tl.bfloat16))
                tl.store(out_ptr + offset + k * D, x, mask=valid[:, None])
            else:
                x = tl.load(streams_ptr + offset + k * D, mask=valid[:, None], other=0.0)
            mine = tl.dot(x, parts[k][1], tl.dot(x, parts[k][2]))
            total += tl.dot(x, parts[k][0], mine)  # a chain of products for each stream: four run beside each other
            squares += x.to(tl.float32) * x.to(tl.float32)
        total = tl.where(column[None, :] == M, tl.sum(squares, 1)[:, None], total)
        where = (rows[:, None] * (D // BLOCK) + split) * COLUMNS + column[None, :]
        tl.store(partial_ptr + where, total, mask=valid[:, None])


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


@triton.jit(do_not_specialize=["tokens"])
def post_kernel(
    y_ptr, streams_ptr, post_ptr, comb_ptr, out_ptr, tokens,
    D: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """X'_k = post_k y + sum_j comb_jk X_j, rounded to bf16. Grid (ceil(tokens / TILE), ceil(D / BLOCK))."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = rows < tokens
    inside = valid[:, None] & (channel < D)[None, :]
    after_producers(PDL)
    offset = rows[:, None] * (4 * D) + channel[None, :]
    y = tl.load(y_ptr + rows[:, None] * D + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    x0 = tl.load(streams_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    x1 = tl.load(streams_ptr + offset + D, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(streams_ptr + offset + 2 * D, mask=inside, other=0.0).to(tl.float32)
    x3 = tl.load(streams_ptr + offset + 3 * D, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(4):
        mixed = mixed_stream(y, x0, x1, x2, x3, post_ptr, comb_ptr, rows, valid, k)
        tl.store(out_ptr + offset + k * D, mixed.to(tl.bfloat16), mask=inside)
