"""MXFP4 experts for few tokens: two launches that stream each chosen expert's weights once (README: derivation).

KC inputs of a weight row meet a block-diagonal matrix: column (g, b) holds the 32 activations of block b of token g and
zero elsewhere, so one FP8 product keeps the KC / 32 blocks of a row apart and the MXFP4 scales are applied once per
block, after the sum. E2M1 widens to E4M3 in registers: code seem -> byte s00eem00 is exactly value * 2^-6.
"""

import triton
import triton.language as tl

from wellhead.ops.device_formats import power_of_two, round_rows, widen_e2m1
from wellhead.ops.overlap import after_producers


@triton.jit
def _block_diagonal(half, G: tl.constexpr, KC: tl.constexpr):
    """E4M3 [G, KC/2] (even or odd inputs) -> [KC/2, G KC/32], block b of token g in column g KC/32 + b.

    Inputs stay the fast axis in memory: the order in which FP8 instructions load their second operand.
    """
    block = tl.arange(0, KC // 32)[None, :, None]
    place = tl.arange(0, KC // 2)[None, None, :] // 16
    spread = tl.where(block == place, half.to(tl.uint8, bitcast=True)[:, None, :], 0)
    return tl.trans(tl.reshape(spread, (G * (KC // 32), KC // 2)).to(tl.float8e4nv, bitcast=True))


@triton.jit
def _accumulate(
    acc, packed, scale, codes, act_scale, R: tl.constexpr, G: tl.constexpr, KC: tl.constexpr
):
    """acc fp32 [R, G, B] += (W x) per block, B = KC/32; packed [R, KC/2], scale [R, B], codes [G, KC], act_scale [G, B]

    (scales: bytes of the weight, fp32 of the activations).
    """
    low, high = widen_e2m1(packed)
    even, odd = tl.split(tl.reshape(codes.to(tl.uint8, bitcast=True), (G, KC // 2, 2)))
    even, odd = even.to(tl.float8e4nv, bitcast=True), odd.to(tl.float8e4nv, bitcast=True)
    product = tl.dot(low, _block_diagonal(even, G, KC))
    product = tl.dot(high, _block_diagonal(odd, G, KC), product)
    product = tl.reshape(product, (R, G, KC // 32))
    return acc + product * (power_of_two(scale) * 64.0)[:, None, :] * act_scale[None, :, :]


@triton.jit
def gate_up_kernel(
    x, x_scale, w13, s13, group_expert, group_slots, slot_weight, h,
    D, M_INTER, TOP_K, limit,
    G: tl.constexpr, BN: tl.constexpr, KC: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h[slot] = bf16(weight * silu(min(gate, limit)) * clamp(up)): one program per (group, BN hidden channels).

    x E4M3 [T, D], x_scale u8 [T, D/128]; w13 u8 [E, 2m, D/2] and s13 u8 [E, 2m, D/32], rows gate_i, up_i in turn;
    group_expert i32 [groups] (-1: no group), group_slots i32 [groups, G] (slot = token * TOP_K + place, -1 none).
    """
    R: tl.constexpr = 2 * BN
    after_producers(PDL)
    group = tl.program_id(0)
    expert = tl.load(group_expert + group)
    if expert < 0:
        return
    slots = tl.load(group_slots + group * G + tl.arange(0, G))
    used = slots >= 0
    token = (tl.maximum(slots, 0) // TOP_K).to(tl.int64)
    rows = expert.to(tl.int64) * (2 * M_INTER) + tl.program_id(1) * R + tl.arange(0, R)
    byte, block, k = tl.arange(0, KC // 2), tl.arange(0, KC // 32), tl.arange(0, KC)
    acc = tl.zeros((R, G, KC // 32), dtype=tl.float32)
    for at in tl.range(0, D, KC, num_stages=STAGES):
        packed = tl.load(w13 + rows[:, None] * (D // 2) + (at // 2 + byte)[None, :])
        scale = tl.load(s13 + rows[:, None] * (D // 32) + (at // 32 + block)[None, :])
        codes = tl.load(x + token[:, None] * D + (at + k)[None, :], mask=used[:, None], other=0)
        act = tl.load(
            x_scale + token[:, None] * (D // 128) + (at // 128 + block // 4)[None, :],
            mask=used[:, None], other=0,
        )  # fmt: skip
        codes = codes.to(tl.float8e4nv, bitcast=True)
        acc = _accumulate(acc, packed, scale, codes, power_of_two(act), R, G, KC)
    both = (tl.reshape(tl.trans(tl.sum(acc, axis=2)), (G, BN, 2))).to(tl.bfloat16).to(tl.float32)
    gate, up = tl.split(both)
    gate = tl.minimum(gate, limit)
    hidden = gate / (1.0 + tl.exp(-gate)) * tl.minimum(tl.maximum(up, -limit), limit)
    hidden = hidden * tl.load(slot_weight + slots, mask=used, other=0.0)[:, None]
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    place = tl.maximum(slots, 0).to(tl.int64)[:, None] * M_INTER + channel[None, :]
    tl.store(h + place, hidden.to(tl.bfloat16), mask=used[:, None])


@triton.jit
def down_kernel(
    h, w2, s2, group_expert, group_slots, y,
    D, M_INTER,
    G: tl.constexpr, R: tl.constexpr, KC: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y[slot] = bf16(w2 round(h[slot])): one program per (group, R output channels).

    h bf16 [slots, m] as `gate_up_kernel` wrote it; w2 u8 [E, D, m/2], s2 u8 [E, D, m/32]; y bf16 [slots, D]. Rows of
    slots that no group lists are not written. The lists are older than `gate_up_kernel`, which is the one in front.
    """
    group = tl.program_id(0)
    expert = tl.load(group_expert + group)
    slots = tl.load(group_slots + group * G + tl.arange(0, G))
    after_producers(PDL)
    if expert < 0:
        return
    used = slots >= 0
    slot = tl.maximum(slots, 0).to(tl.int64)
    rows = expert.to(tl.int64) * D + tl.program_id(1) * R + tl.arange(0, R)
    byte, block, k = tl.arange(0, KC // 2), tl.arange(0, KC // 32), tl.arange(0, KC)
    acc = tl.zeros((R, G, KC // 32), dtype=tl.float32)
    for at in tl.range(0, M_INTER, KC, num_stages=STAGES):
        packed = tl.load(w2 + rows[:, None] * (M_INTER // 2) + (at // 2 + byte)[None, :])
        scale = tl.load(s2 + rows[:, None] * (M_INTER // 32) + (at // 32 + block)[None, :])
        values = tl.load(h + slot[:, None] * M_INTER + (at + k)[None, :], mask=used[:, None], other=0.0)
        codes, act = round_rows(values.to(tl.float32), G, KC)
        act = tl.reshape(tl.broadcast_to(act[:, :, None], (G, KC // 128, 4)), (G, KC // 32))
        acc = _accumulate(acc, packed, scale, codes, act, R, G, KC)
    out = tl.trans(tl.sum(acc, axis=2)).to(tl.bfloat16)
    channel = tl.program_id(1) * R + tl.arange(0, R)
    tl.store(y + slot[:, None] * D + channel[None, :], out, mask=used[:, None])


@triton.jit
def combine_kernel(
    y, ids, shared, out, D, TOP_K: tl.constexpr, FIRST, EXPERTS, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """out bf16 [T, D] = sum over a token's experts, in order and in fp32, of y bf16 [T * TOP_K, D], plus shared bf16.

    An id outside FIRST .. FIRST + EXPERTS - 1, -1 included, adds nothing: its row of y is not read.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < D
    after_producers(PDL)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for place in tl.static_range(TOP_K):
        expert = tl.load(ids + token * TOP_K + place)
        mine = (expert >= FIRST) & (expert < FIRST + EXPERTS)
        row = tl.load(y + (token * TOP_K + place) * D + column, mask=inside & mine, other=0.0)
        total += row.to(tl.float32)
    total += tl.load(shared + token * D + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * D + column, total.to(tl.bfloat16), mask=inside)
