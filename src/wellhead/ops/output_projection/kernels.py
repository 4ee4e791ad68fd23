"""Grouped output projection: a block-FP8 weight times bf16 rows, group by group.

`grouped_gemv_kernel` multiplies on CUDA cores, a few weight rows a program: for one or two tokens. `tile_kernel` gives
the weight, widened to bf16, to the tensor cores as their M side: for more. A head is 512 inputs.
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import e4m3, power_of_two, round_groups
from wellhead.ops.row_sums import near_sums

HEAD = tl.constexpr(512)
NEAR = tl.constexpr(8)  # as many neighbours as one load has of bf16


@triton.jit(do_not_specialize=["TOKENS"])
def grouped_gemv_kernel(
    o, w, w_scale, z,
    TOKENS, N,
    M: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """z bf16 [TOKENS, G N] of M >= TOKENS tokens: one program per (BN rows of w E4M3 [G N, 512 P], group).

    No loop: all of a program's weights are asked for at once, before o exists. The scales multiply the activations.
    """
    K: tl.constexpr = P * HEAD
    group, groups = tl.program_id(1), tl.num_programs(1)
    first = group * N + tl.program_id(0) * BN
    row, k = first + tl.arange(0, BN), tl.arange(0, K)
    codes = tl.load(w + row.to(tl.int64)[:, None] * K + k[None, :])
    scale = power_of_two(tl.load(w_scale + (first // 128).to(tl.int64) * (K // 128) + tl.arange(0, K // 128)))
    after_producers(PDL)
    for each in tl.static_range(M):
        token = tl.minimum(each, TOKENS - 1)  # past the end: the last one again, with the same result
        a = tl.load(o + (token * groups + group).to(tl.int64) * K + k).to(tl.float32)
        a = tl.reshape(tl.reshape(a, (K // 128, 128)) * scale[:, None], (1, K))
        total = tl.sum(near_sums(e4m3(codes).to(tl.float32) * a, NEAR), axis=1)
        tl.store(z + token * (groups * N) + row, total.to(tl.bfloat16))


@triton.jit(do_not_specialize=["TOKENS"])
def tile_kernel(
    o, w, w_scale, z, z_scale,
    TOKENS, N,
    P: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, ROUND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """z [TOKENS, G N]: one program per (BN rows of w, BT tokens, group of P heads); BN a divisor of 128.

    z is bf16, or with ROUND (BN 128) E4M3 with a scale byte per 128, z_scale u8 [TOKENS, G N / 128].
    """
    K: tl.constexpr = P * HEAD
    group, groups = tl.program_id(2), tl.num_programs(2)
    first = group * N + tl.program_id(0) * BN
    row, token = first + tl.arange(0, BN), tl.program_id(1) * BT + tl.arange(0, BT)
    used, k = token < TOKENS, tl.arange(0, 128)
    w_at = w + row.to(tl.int64)[:, None] * K + k[None, :]
    scale_at = w_scale + (first // 128).to(tl.int64) * (K // 128)
    o_at = o + ((token.to(tl.int64) * groups + group) * K)[:, None] + k[None, :]
    after_producers(PDL)
    acc = tl.zeros((BN, BT), dtype=tl.float32)
    for block in range(K // 128):
        codes = e4m3(tl.load(w_at + block * 128)).to(tl.float32)  # by way of fp32: E4M3 to bf16 is a slow conversion
        a = tl.load(o_at + block * 128, mask=used[:, None], other=0.0)
        acc += tl.dot(codes.to(tl.bfloat16), tl.trans(a)) * power_of_two(tl.load(scale_at + block))
    out = tl.trans(acc).to(tl.bfloat16)
    place = token.to(tl.int64)[:, None] * (groups * N) + row[None, :]
    if ROUND:
        codes, exponent = round_groups(out.to(tl.float32), BT, BN, 128)
        tl.store(z + place, codes, mask=used[:, None])
        group_at = token.to(tl.int64)[:, None] * (groups * N // 128) + first // 128 + tl.arange(0, 1)[None, :]
        tl.store(z_scale + group_at, exponent.to(tl.uint8), mask=used[:, None])
    else:
        tl.store(z + place, out, mask=used[:, None])
