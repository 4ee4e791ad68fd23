"""y = x w^T of bf16 rows and weights, fp32 sums, one launch for up to three matrices that lie behind each other."""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.row_sums import near_sums

NEAR = tl.constexpr(8)  # as many neighbours as one load has

@triton.jit
def _store_part(y, token, row, begin, end, values, used):
    """Columns `row` - begin of y [T, end - begin], for rows of the weight between begin and end."""
    place = token.to(tl.int64)[:, None] * (end - begin) + (row - begin)[None, :]
    tl.store(y + place, values.to(y.dtype.element_ty), mask=used & (row < end)[None, :])


@triton.jit
def _store(y0, y1, y2, token, row, values, used, N0, N1, N):
    """Rows below N0 belong to y0, those below N1 to y1, those below N to y2; a program's rows to one of them."""
    first = tl.min(row, axis=0)
    if first < N0:
        _store_part(y0, token, row, 0, N0, values, used)
    elif first < N1:
        _store_part(y1, token, row, N0, N1, values, used)
    else:
        _store_part(y2, token, row, N1, N, values, used)


@triton.jit
def _sums(tile, x, KC: tl.constexpr):
    """fp32 [BN, KC / NEAR]: a tile of weights [BN, KC] times x [KC], neighbours added up."""
    return near_sums(tile.to(tl.float32) * tl.load(x + tl.arange(0, KC)).to(tl.float32)[None, :], NEAR)


@triton.jit
def bf16_gemv_kernel(x, w, y0, y1, y2, N0, N1, N, K, BN: tl.constexpr, KC: tl.constexpr, PDL: tl.constexpr):
    """y fp32 or bf16 [1, ..] of one row x bf16 [K] and w bf16 [N, K]; one program per BN rows of w.

    On CUDA cores, KC inputs a step, the first weights before x exists (a loop would carry later ones value by value).
    """
    row, one = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, 1)
    weights, inside = w + row.to(tl.int64)[:, None] * K + tl.arange(0, KC)[None, :], (row < N)[:, None]
    tile = tl.load(weights, mask=inside, other=0.0)
    after_producers(PDL)
    acc = _sums(tile, x, KC)
    for at in range(KC, K, KC):
        acc += _sums(tl.load(weights + at, mask=inside, other=0.0), x + at, KC)
    _store(y0, y1, y2, one, row, tl.sum(acc, axis=1)[None, :], (one == 0)[:, None], N0, N1, N)


@triton.jit(do_not_specialize=["TOKENS"])
def product_kernel(
    x, w, y0, y1, y2,
    TOKENS, N0, N1, N, K, X_STRIDE,
    M: tl.constexpr, BN: tl.constexpr, KC: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y fp32 or bf16 [TOKENS, ..] of x bf16 rows X_STRIDE apart and w bf16 [N, K], K a multiple of KC.

    One program per (BN rows of w, M tokens), on tensor cores.
    """
    row, token = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * M + tl.arange(0, M)
    used, inside, k = (token < TOKENS)[:, None], (row < N)[:, None], tl.arange(0, KC)[None, :]
    x_at = x + token.to(tl.int64)[:, None] * X_STRIDE + k
    w_at = w + row.to(tl.int64)[:, None] * K + k
    after_producers(PDL)
    acc = tl.zeros((M, BN), dtype=tl.float32)
    for at in tl.range(0, K, KC, num_stages=STAGES):
        a = tl.load(x_at + at, mask=used, other=0.0)
        b = tl.load(w_at + at, mask=inside, other=0.0)
        acc = tl.dot(a, tl.trans(b), acc)
    _store(y0, y1, y2, token, row, acc, used, N0, N1, N)
