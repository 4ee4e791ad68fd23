"""Block-FP8 products for few tokens: y = sum over 128-blocks of (sum a w) s_a s_w, fp32 sums, one launch each.

`gemv_kernel` multiplies on CUDA cores, a few weight rows a program: for one to four tokens and any number of rows.
`small_kernel` gives the weight to the tensor cores as their M side: for many rows, up to 64 tokens.
Both take E4M3 rows with their scales, or bf16 rows that they round on the way in (ROUND), bit for bit the same.
"""

import triton
import triton.language as tl

from wellhead.ops.device_formats import power_of_two, round_rows


@triton.jit
def _activation(
    x, x_scale, token, used, at, K, M: tl.constexpr, KC: tl.constexpr, ROUND: tl.constexpr
):
    """(E4M3 [M, KC], fp32 scale [M, KC / 128]) of inputs at .. at + KC - 1 of each token."""
    k, block = tl.arange(0, KC), tl.arange(0, KC // 128)
    if ROUND:
        values = tl.load(x + token[:, None] * K + (at + k)[None, :], mask=used[:, None], other=0.0)
        codes, scale = round_rows(values.to(tl.float32), M, KC)
    else:
        raw = tl.load(x + token[:, None] * K + (at + k)[None, :], mask=used[:, None], other=0)
        place = token[:, None] * (K // 128) + (at // 128 + block)[None, :]
        byte = tl.load(x_scale + place, mask=used[:, None], other=0)
        codes, scale = raw.to(tl.float8e4nv, bitcast=True), power_of_two(byte)
    return codes, scale


@triton.jit
def gemv_kernel(
    x, x_scale, w, w_scale, y,
    TOKENS, N, K,
    M: tl.constexpr, BN: tl.constexpr, KC: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """y bf16 [TOKENS, N] of M >= TOKENS rows: one program per BN (a divisor of 128) rows of w E4M3 [N, K].

    The scales multiply the activations, one per 128 inputs, so the inner loop is a convert and M multiply-adds.
    """
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    token = tl.arange(0, M)
    used = token < TOKENS
    k, block = tl.arange(0, KC), tl.arange(0, KC // 128)
    scale_row = w_scale + (tl.program_id(0) * BN // 128).to(tl.int64) * (K // 128)
    acc = tl.zeros((M, BN, KC), dtype=tl.float32)
    for at in range(0, K, KC):
        tile = tl.load(w + rows.to(tl.int64)[:, None] * K + (at + k)[None, :], mask=(rows < N)[:, None], other=0)
        codes, scale = _activation(x, x_scale, token, used, at, K, M, KC, ROUND)
        scale = scale * power_of_two(tl.load(scale_row + at // 128 + block))[None, :]
        a = tl.reshape(tl.reshape(codes.to(tl.float32), (M, KC // 128, 128)) * scale[:, :, None], (M, KC))
        acc += tile.to(tl.float8e4nv, bitcast=True).to(tl.float32)[None, :, :] * a[:, None, :]
    out = tl.sum(acc, axis=2).to(tl.bfloat16)
    tl.store(y + token[:, None] * N + rows[None, :], out, mask=used[:, None] & (rows < N)[None, :])


@triton.jit
def small_kernel(
    x, x_scale, w, w_scale, y,
    TOKENS, N, K,
    M: tl.constexpr, COLUMNS: tl.constexpr, BN: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """y bf16 [TOKENS, N]: one program per (BN rows of w, M tokens); BN 64 or 128.

    The instruction wants COLUMNS >= M columns: the tokens are repeated to fill them, and the first copy is kept.
    """
    COPIES: tl.constexpr = COLUMNS // M
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    token = tl.program_id(1) * M + tl.arange(0, M)
    used = token < TOKENS
    k = tl.arange(0, 128)
    scale_row = w_scale + (tl.program_id(0) * BN // 128).to(tl.int64) * (K // 128)
    acc = tl.zeros((BN, COLUMNS), dtype=tl.float32)
    for at in range(0, K, 128):
        tile = tl.load(w + rows.to(tl.int64)[:, None] * K + (at + k)[None, :], mask=(rows < N)[:, None], other=0)
        codes, scale = _activation(x, x_scale, token, used, at, K, M, 128, ROUND)
        scale = tl.reshape(tl.broadcast_to(tl.reshape(scale, (1, M)), (COPIES, M)), (1, COLUMNS))
        codes = tl.broadcast_to(codes.to(tl.uint8, bitcast=True)[None, :, :], (COPIES, M, 128))
        codes = tl.reshape(codes, (COLUMNS, 128)).to(tl.float8e4nv, bitcast=True)
        product = tl.dot(tile.to(tl.float8e4nv, bitcast=True), tl.trans(codes))
        acc += product * (scale * power_of_two(tl.load(scale_row + at // 128)))
    out = tl.max(tl.reshape(acc, (BN, COPIES, M)), axis=1)
    place = token.to(tl.int64)[None, :] * N + rows[:, None]
    tl.store(y + place, out.to(tl.bfloat16), mask=(rows < N)[:, None] & used[None, :])
