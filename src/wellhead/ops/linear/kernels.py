"""Block-FP8 products for few tokens: y = sum over 128-blocks of (sum a w) s_a s_w, fp32 sums, one launch each.

`fp8_gemv_kernel` multiplies one token on CUDA cores, a few weight rows a program, its first weights on their way before
the activations exist. `few_kernel` gives up to 64 tokens to the tensor cores as their M side.
Both take E4M3 rows with their scales, or bf16 rows that they round on the way in (ROUND), bit for bit the same.
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import e4m3, power_of_two, round_rows
from wellhead.ops.row_sums import near_sums

NEAR = tl.constexpr(16)  # as many neighbours as one load has


@triton.jit
def _activation(x, x_scale, token, used, at, K, M: tl.constexpr, KC: tl.constexpr, ROUND: tl.constexpr):
    """(E4M3 [M, KC], fp32 scale [M, KC / 128]) of inputs at .. at + KC - 1 of each token."""
    k, block = tl.arange(0, KC), tl.arange(0, KC // 128)
    if ROUND:
        values = tl.load(x + token[:, None] * K + (at + k)[None, :], mask=used[:, None], other=0.0)
        codes, scale = round_rows(values.to(tl.float32), M, KC)
    else:
        raw = tl.load(x + token[:, None] * K + (at + k)[None, :], mask=used[:, None], other=0)
        place = token[:, None] * (K // 128) + (at // 128 + block)[None, :]
        byte = tl.load(x_scale + place, mask=used[:, None], other=0)
        codes, scale = e4m3(raw), power_of_two(byte)
    return codes, scale


@triton.jit
def _sums(tile, tile_scale, x, x_scale, at, K, KC: tl.constexpr, ROUND: tl.constexpr):
    """fp32 [BN, KC / NEAR]: weights [BN, KC], scales [KC / 128], times inputs at .. at + KC - 1, neighbours added up.

    The scales multiply the activations, one per 128 inputs, so a weight costs a convert and a multiply-add.
    """
    one = tl.arange(0, 1)
    codes, scale = _activation(x, x_scale, one, one == 0, at, K, 1, KC, ROUND)
    scale = scale * power_of_two(tile_scale)[None, :]
    a = tl.reshape(tl.reshape(codes.to(tl.float32), (1, KC // 128, 128)) * scale[:, :, None], (1, KC))
    return near_sums(e4m3(tile).to(tl.float32) * a, NEAR)


@triton.jit
def fp8_gemv_kernel(
    x, x_scale, w, w_scale, y,
    N, K,
    BN: tl.constexpr, KC: tl.constexpr, ROUND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y bf16 [1, N]: one program per BN (a divisor of 128) rows of w E4M3 [N, K], KC inputs a step.

    A tile that a loop carried would be carried byte by byte, a register each: only the first is asked for ahead.
    """
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = (rows < N)[:, None]
    weights = w + rows.to(tl.int64)[:, None] * K + tl.arange(0, KC)[None, :]
    scales = w_scale + (tl.program_id(0) * BN // 128).to(tl.int64) * (K // 128) + tl.arange(0, KC // 128)
    tile, tile_scale = tl.load(weights, mask=inside, other=0), tl.load(scales)
    after_producers(PDL)
    acc = _sums(tile, tile_scale, x, x_scale, 0, K, KC, ROUND)
    for at in range(KC, K, KC):
        tile = tl.load(weights + at, mask=inside, other=0)
        acc += _sums(tile, tl.load(scales + at // 128), x, x_scale, at, K, KC, ROUND)
    tl.store(y + rows, tl.sum(acc, axis=1).to(tl.bfloat16), mask=rows < N)


@triton.jit
def few_kernel(
    x, x_scale, w, w_scale, y,
    TOKENS, N, K,
    M: tl.constexpr, BN: tl.constexpr, ROUND: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y bf16 [TOKENS, N]: one program per (BN rows of w, M tokens); BN a divisor of 128, M at least 16."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    token = tl.program_id(1) * M + tl.arange(0, M)
    used = token < TOKENS
    k = tl.arange(0, 128)
    scale_row = w_scale + (tl.program_id(0) * BN // 128).to(tl.int64) * (K // 128)
    after_producers(PDL)
    acc = tl.zeros((M, BN), dtype=tl.float32)
    for at in tl.range(0, K, 128, num_stages=STAGES):
        tile = tl.load(w + rows.to(tl.int64)[:, None] * K + (at + k)[None, :], mask=(rows < N)[:, None], other=0)
        codes, scale = _activation(x, x_scale, token, used, at, K, M, 128, ROUND)
        product = tl.dot(codes, tl.trans(e4m3(tile)))
        acc += product * (scale * power_of_two(tl.load(scale_row + at // 128)))
    place = token.to(tl.int64)[:, None] * N + rows[None, :]
    tl.store(y + place, acc.to(tl.bfloat16), mask=used[:, None] & (rows < N)[None, :])
