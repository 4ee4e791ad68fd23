"""Block-FP8 product for many tokens: both sides in tiles, one FP8 product and one fp32 multiply-add a 128-block."""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import e4m3, power_of_two


@triton.jit
def _tile(tiles_m, tiles_n, GROUP: tl.constexpr):
    """(row tile, column tile) of this program: GROUP row tiles go through all columns before the next GROUP begins.

    Programs that run at the same time then share rows of both operands, which stay in L2.
    """
    program = tl.program_id(0)
    group = program // (GROUP * tiles_n)
    first, inside = group * GROUP, program % (GROUP * tiles_n)
    height = tl.minimum(tiles_m - first, GROUP)
    return first + inside % height, inside // height


@triton.jit(do_not_specialize=["TOKENS"])
def large_kernel(
    x, x_scale, w, w_scale, y,
    TOKENS, N, K,
    BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y bf16 [TOKENS, N] of x E4M3 [TOKENS, K] and w E4M3 [N, K] with their scales: BM tokens, BN rows of w a program.

    BN divides 128. Rows past the edge repeat the last one, so that loads need no mask; they are not stored.
    """
    tile_m, tile_n = _tile(tl.cdiv(TOKENS, BM), tl.cdiv(N, BN), GROUP)
    token, row = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    k = tl.arange(0, 128)
    given = tl.minimum(token, TOKENS - 1).to(tl.int64)
    x_at = x + given[:, None] * K + k[None, :]
    w_at = w + tl.minimum(row, N - 1).to(tl.int64)[:, None] * K + k[None, :]
    x_scale_at = x_scale + given * (K // 128)
    w_scale_at = w_scale + (tile_n * BN // 128).to(tl.int64) * (K // 128)
    after_producers(PDL)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for block in range(K // 128):
        a = e4m3(tl.load(x_at + block * 128))
        b = e4m3(tl.load(w_at + block * 128))
        scale = power_of_two(tl.load(x_scale_at + block)) * power_of_two(tl.load(w_scale_at + block))
        acc += tl.dot(a, tl.trans(b)) * scale[:, None]
    kept = (token < TOKENS)[:, None] & (row < N)[None, :]
    tl.store(y + token.to(tl.int64)[:, None] * N + row[None, :], acc.to(tl.bfloat16), mask=kept)
