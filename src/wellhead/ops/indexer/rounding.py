"""Keys and queries of the indexer on their way to FP8 or FP4: rotated by their position (queries; keys have been),
turned by the Hadamard matrix, rounded, stored. A key is stored by the kernel that makes it (ops.compressor).

Turned: a product with the signs, the sum in fp32, times 128^-1/2, rounded to bf16. FP8: scale max(amax, 1e-4) / 448 in
fp32; FP4: the rule of formats.mxfp4.
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import e4m3_bytes, power_of_two
from wellhead.ops.rope.kernels import cos_sin

DIM = tl.constexpr(128)
PAGE = tl.constexpr(64)
ROWS = tl.constexpr(16)  # of a product
SIXTH = tl.constexpr(0.1666666716337204)  # fp32(1 / 6)
FLOOR = tl.constexpr(7.052966104933725e-38)  # 6 * 2^-126


@triton.jit
def _angles(positions, freqs, token, inside):
    """fp32 (cos, sin) [tokens, 64] of the pairs of vectors of 128; all but the last 32 turn by nothing."""
    pair = tl.arange(0, DIM // 2)
    freq = tl.load(freqs + pair - 32, mask=pair >= 32, other=0.0)
    position = tl.load(positions + token, mask=inside, other=0).to(tl.float32)
    return cos_sin(position[:, None] * freq[None, :])


@triton.jit
def _positioned(vectors, cos, sin, BN: tl.constexpr):
    """bf16 [BN, 128]: the pairs of each vector rotated, rounded (ops.rope)."""
    a, b = tl.split(tl.reshape(vectors.to(tl.float32), (BN, DIM // 2, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (BN, DIM)).to(tl.bfloat16)


@triton.jit
def _parity(number):
    """0x8000 of numbers below 16 with an odd number of bits, else 0."""
    number = number ^ (number >> 2)
    return ((number ^ (number >> 1)) & 1) << 15


@triton.jit
def _signs():
    """bf16 [128, 128], the Hadamard matrix times 128^1/2, made before the vectors exist.

    Sylvester: the sign is the parity of the common bits of row and column, that is of the four low and the three high.
    """
    row = tl.arange(0, DIM)
    low = _parity((row & 15)[:, None] & tl.arange(0, 16)[None, :])
    high = _parity((row >> 4)[:, None] & tl.arange(0, 8)[None, :])
    bits = tl.reshape((high[:, :, None] ^ low[:, None, :]) | 0x3F80, (DIM, DIM))
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _turned(vectors, signs, BN: tl.constexpr):
    """fp32 [BN, 128] of bf16 vectors, through the Hadamard matrix and rounded to bf16."""
    turned = tl.dot(vectors, signs, tl.zeros((BN, DIM), dtype=tl.float32))
    return (turned * 0.08838834764831845).to(tl.bfloat16).to(tl.float32)


@triton.jit
def _fp8(vectors):
    """(E4M3 bytes [BN, 128], fp32 scale [BN]); both divisions as IEEE rounds them."""
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(vectors), axis=1), 1e-4), 448.0)
    return e4m3_bytes(tl.div_rn(vectors, tl.broadcast_to(scale[:, None], vectors.shape))), scale


@triton.jit
def _fp4(vectors, BN: tl.constexpr):
    """(uint8 [BN, 64], even dim in the low nibble, UE8M0 int32 [BN, 4])."""
    blocks = tl.reshape(vectors, (BN, 4, 32))
    bits = (tl.maximum(tl.max(tl.abs(blocks), axis=2), FLOOR) * SIXTH).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
    scaled = tl.reshape(blocks * power_of_two(254 - exponent)[:, :, None], (BN, 128))
    m = tl.abs(scaled)
    # halfway goes to the even code: the midpoint above an odd code belongs to the next one
    code = (m > 0.25).to(tl.int32) + (m >= 0.75).to(tl.int32) + (m > 1.25).to(tl.int32) + (m >= 1.75).to(tl.int32)
    code += (m > 2.5).to(tl.int32) + (m >= 3.5).to(tl.int32) + (m > 5.0).to(tl.int32)
    code |= (scaled.to(tl.int32, bitcast=True) >> 28) & 8
    even, odd = tl.split(tl.reshape(code, (BN, 64, 2)))
    return (even | (odd << 4)).to(tl.uint8), exponent


@triton.jit
def store_key(key, slot, cache, STRIDE, FP4: tl.constexpr):
    """Record of a key bf16 [128], turned, at slot (page * 64 + offset, -1: none) of cache u8, pages STRIDE apart.

    The key is every row of the product's left side, of which there are 16 at the least.
    """
    if slot >= 0:
        page, offset = cache + slot // PAGE * STRIDE, slot % PAGE
        once = tl.arange(0, ROWS) == 0
        turned = _turned(tl.broadcast_to(key[None, :], (ROWS, DIM)), _signs(), ROWS)
        if FP4:
            codes, exponent = _fp4(turned, ROWS)
            place = page + offset * 64 + tl.arange(0, 64)
            tl.store(tl.broadcast_to(place[None, :], (ROWS, 64)), codes, mask=once[:, None])
            tail = page + PAGE * 64 + offset * 4 + tl.arange(0, 4)
            tl.store(tl.broadcast_to(tail[None, :], (ROWS, 4)), exponent.to(tl.uint8), mask=once[:, None])
        else:
            codes, scale = _fp8(turned)
            place = page + offset * DIM + tl.arange(0, DIM)
            tl.store(tl.broadcast_to(place[None, :], (ROWS, DIM)), codes, mask=once[:, None])
            tail = (page + PAGE * DIM + offset * 4).to(tl.pointer_type(tl.float32))
            tl.store(tail + tl.zeros((ROWS,), tl.int32), scale, mask=once)


@triton.jit(do_not_specialize=["COUNT"])
def round_query_kernel(
    q, positions, freqs, weights, codes, tail, scaled, COUNT, HEADS, factor,
    BN: tl.constexpr, ONE: tl.constexpr, FP4: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """q bf16 [N, 128], N = T H, rotated by positions int64 [T] and turned; weights fp32 or bf16 [N], times factor.

    A program takes BN vectors; ONE: they are of one token. FP8: codes E4M3 [N, 128] and tail fp32 [N] = weight times
    q's scale. FP4: codes u8 [N, 64], tail u8 [N, 4], the scales, and scaled fp32 [N], the weights.
    """
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = row < COUNT
    wide = row.to(tl.int64)
    signs = _signs()
    some = tl.program_id(0) * BN + tl.arange(0, 1) if ONE else row
    cos, sin = _angles(positions, freqs, some // HEADS, some < COUNT)  # inputs: older than the kernel in front
    after_producers(PDL)
    vectors = tl.load(q + wide[:, None] * DIM + tl.arange(0, DIM)[None, :], mask=inside[:, None], other=0.0)
    vectors = _turned(_positioned(vectors, cos, sin, BN), signs, BN)
    weight = tl.load(weights + row, mask=inside, other=0.0).to(tl.float32) * factor
    if FP4:
        packed, exponent = _fp4(vectors, BN)
        tl.store(codes + wide[:, None] * 64 + tl.arange(0, 64)[None, :], packed, mask=inside[:, None])
        tl.store(tail + wide[:, None] * 4 + tl.arange(0, 4)[None, :], exponent.to(tl.uint8), mask=inside[:, None])
        tl.store(scaled + row, weight, mask=inside)
    else:
        rounded, scale = _fp8(vectors)
        place = codes + wide[:, None] * DIM + tl.arange(0, DIM)[None, :]
        tl.store(place, rounded, mask=inside[:, None])
        tl.store(tail + row, weight * scale, mask=inside)
