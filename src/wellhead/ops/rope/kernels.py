"""Rotation of interleaved pairs by position * frequency, with the angle reduced in fp32.

`cos_sin` reduces by two fused multiply-adds with pi/2 in two parts (Cody and Waite 1980): for angles below 2^20, a
million positions, the first is exact, what the parts lack is 2^-29, and cosine and sine come out within 2^-23. The
compiler's own cosine takes a slow path through local memory from an angle of 105,615 on. Polynomials: Moshier's
Cephes (sinf, cosf).
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers

PAIRS = tl.constexpr(32)
ROTATED = tl.constexpr(64)


@triton.jit
def cos_sin(angle):
    """fp32 (cos, sin) of fp32 0 <= angle < 2^20."""
    biased = tl.fma(angle, 0.636619772367581343, 12582912.0)  # 1.5 * 2^23: the nearest integer is in the low bits
    quarter, turns = biased.to(tl.int32, bitcast=True), biased - 12582912.0
    r = tl.fma(turns, -1.57079637050628662109375, angle)
    r = tl.fma(turns, 4.37113882867379e-8, r)
    z = r * r
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r
    c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    swapped, cos_negative, sin_negative = (quarter & 1) != 0, ((quarter + 1) & 2) != 0, (quarter & 2) != 0
    cos, sin = tl.where(swapped, s, c), tl.where(swapped, c, s)
    return tl.where(cos_negative, -cos, cos), tl.where(sin_negative, -sin, sin)


@triton.jit
def angles(positions, freqs, token):
    """fp32 (cos, sin) [1, 32] of one token: the angle is the fp32 product of position and frequency."""
    position = tl.load(positions + token).to(tl.float32)
    return cos_sin(position * tl.load(freqs + tl.arange(0, PAIRS))[None, :])


@triton.jit
def turn(tail, cos, sin, ROWS: tl.constexpr):
    """fp32 [ROWS, 64] with each pair (a, b) turned to (a cos - b sin, a sin + b cos)."""
    a, b = tl.split(tl.reshape(tail, (ROWS, PAIRS, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (ROWS, ROTATED))


@triton.jit(do_not_specialize=["HEADS"])
def rope_kernel(
    x, out, positions, freqs,
    HEADS,
    D: tl.constexpr, BH: tl.constexpr, INVERSE: tl.constexpr, COPY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out bf16 [T, H, D]: the last 64 of BH heads of one token turned; COPY brings the other D - 64 along."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * BH + tl.arange(0, BH)
    inside = (head < HEADS)[:, None]
    place = ((token * HEADS + head) * D)[:, None]
    last = D - ROTATED + tl.arange(0, ROTATED)[None, :]
    cos, sin = angles(positions, freqs, token)  # a step's inputs: older than the kernel in front
    if INVERSE:
        sin = -sin
    after_producers(PDL)
    tail = tl.load(x + place + last, mask=inside, other=0.0).to(tl.float32)
    if COPY:
        column = tl.arange(0, D)[None, :]
        kept = inside & (column < D - ROTATED)
        tl.store(out + place + column, tl.load(x + place + column, mask=kept, other=0.0), mask=kept)
    tl.store(out + place + last, turn(tail, cos, sin, BH).to(tl.bfloat16), mask=inside)
