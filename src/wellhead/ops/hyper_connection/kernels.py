"""Hyper-connections: a split-K projection of the streams, and the streams' own way from one site to the next.

The projection optionally writes the streams first (post + pre in one pass over them). Its sums are bf16 tensor-core
products of the bf16 streams with fn split into three bf16 parts, f0 + f1 + f2 = fn to 2^-24 of its size: every
product is exact in fp32. Every token's sums are taken in one order that depends on d alone: the tiles of 16 tokens
walk through the same instructions whatever the number of tokens. A partial row holds m <= 24 projections, then the sum
of squares, then padding; `finish_kernels` reads it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.addend_kernels import added_up
from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import settled


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
