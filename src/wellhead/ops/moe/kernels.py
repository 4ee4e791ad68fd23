"""MXFP4 experts for few tokens: two launches that stream each chosen expert's weights once (README: derivation).

KC inputs of a weight row meet a block-diagonal matrix: column (g, b) holds the 32 activations of block b of token g and
zero elsewhere, so one FP8 product keeps the KC / 32 blocks of a row apart and the MXFP4 scales are applied once per
block, after the sum. E2M1 widens to E4M3 in registers: code seem -> byte s00eem00 is exactly value * 2^-6. Activations
come with the even inputs of each 32 in front of the odd ones, as the low and the high nibbles of a weight row have
them: so the matrix is loaded as it is, by copies that write zeros off the diagonal.
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers, ask
from wellhead.ops.device_formats import e2m1_unit, load_e4m3, power_of_two, widen_e2m1
from wellhead.ops.moe.hidden_kernels import swiglu

LINE = tl.constexpr(128)  # bytes


@triton.jit
def _block_scales(scales, at, NB: tl.constexpr):
    """The NB scale bytes of a row's inputs at .. at + 32 NB - 1, as integers of up to eight; loads want whole words."""
    kind: tl.constexpr = tl.int32 if NB == 4 else tl.int64
    words = (scales + at // 32).to(tl.pointer_type(kind))
    return tl.load(words), tl.load(words + (1 if NB == 16 else 0))


@triton.jit
def _scale_of(words, block, NB: tl.constexpr):
    """fp32 [R, NB]: the powers of two of `_block_scales`' bytes, times the unit of `widen_e2m1`."""
    first, second = words
    word = tl.where((block < 8)[None, :], first[:, None], second[:, None]) if NB == 16 else first[:, None]
    return power_of_two((word >> (8 * (block % 8))[None, :]) & 255) * e2m1_unit()


@triton.jit
def _product(
    x, x_scale, row, used, w, s, out_row, K,
    R: tl.constexpr, G: tl.constexpr, KC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """fp32 [R, G] = (weight rows out_row [R]) (x rows row [G])^T over K inputs, scales of both included.

    w u8 [.., K/2], s u8 [.., K/32]; x E4M3 [.., K] in halves order, x_scale u8 [.., K/128]; row, used [G].
    """
    NB: tl.constexpr = KC // 32
    byte, block = tl.arange(0, KC // 2), tl.arange(0, NB)
    column = tl.arange(0, G * NB)  # (g, b)
    wide_row = tl.reshape(tl.broadcast_to(row[:, None], (G, NB)), (G * NB,))
    wide_used = tl.reshape(tl.broadcast_to(used[:, None], (G, NB)), (G * NB,))
    diagonal = wide_used[:, None] & ((column % NB)[:, None] == byte[None, :] // 16)
    place = x + wide_row[:, None] * K + (byte // 16 * 32 + byte % 16)[None, :]
    # a row is 16 bytes or more: K // 2 alone is known to be a multiple of eight, which halves the copies' width
    weights, scales = w + out_row[:, None] * (K // 32 * 16) + byte[None, :], s + out_row * (K // 32)
    words = _block_scales(scales, 0, NB)
    acc = tl.zeros((R, G, NB), dtype=tl.float32)
    for at in tl.range(0, K, KC, num_stages=STAGES):
        low, high = widen_e2m1(tl.load(weights + at // 2))
        even, odd = load_e4m3(place + at, diagonal), load_e4m3(place + at + 16, diagonal)
        product = tl.dot(high, tl.trans(odd), tl.dot(low, tl.trans(even)))
        act = tl.load(
            x_scale + row[:, None] * (K // 128) + (at // 128 + block // 4)[None, :], mask=used[:, None], other=0
        )  # fmt: skip
        scale = _scale_of(words, block, NB)
        words = _block_scales(scales, tl.minimum(at + KC, K - KC), NB)  # of the next step: too narrow to copy ahead
        acc += tl.reshape(product, (R, G, NB)) * scale[:, None, :] * power_of_two(act)[None, :, :]
    return tl.sum(acc, axis=2)


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
    expert, slots = tl.load(group_expert + group), tl.load(group_slots + group * G + tl.arange(0, G))
    if expert < 0:
        return
    used, slot = slots >= 0, tl.maximum(slots, 0).to(tl.int64)
    weight = tl.load(slot_weight + slot, mask=used, other=0.0)
    rows = expert.to(tl.int64) * (2 * M_INTER) + tl.program_id(1) * R + tl.arange(0, R)
    sums = _product(x, x_scale, slot // TOP_K, used, w13, s13, rows, D, R, G, KC, STAGES)
    hidden = swiglu(sums, weight, limit, G, R)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    tl.store(h + slot[:, None] * M_INTER + channel[None, :], hidden, mask=used[:, None])


@triton.jit
def down_kernel(
    h, h_scale, w2, s2, group_expert, group_slots, y,
    D, M_INTER,
    G: tl.constexpr, R: tl.constexpr, KC: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y[slot] = bf16(w2 h[slot]): one program per (group, R output channels).

    h E4M3 [slots, m] in halves order with h_scale u8 [slots, m/128]; w2 u8 [E, D, m/2], s2 u8 [E, D, m/32]; y bf16
    [slots, D]. Rows of slots that no group lists are not written. The lists are older than the kernel in front.
    """
    group = tl.program_id(0)
    expert = tl.load(group_expert + group)
    slots = tl.load(group_slots + group * G + tl.arange(0, G))
    channel = tl.program_id(1) * R + tl.arange(0, R)
    rows = tl.maximum(expert, 0).to(tl.int64) * D + channel
    if PDL:  # while the first product ends: what the first step reads of 512 inputs
        if expert >= 0:
            at = tl.minimum(tl.arange(0, 2) * LINE, M_INTER // 2 - 1)
            ask(w2 + rows[:, None] * (M_INTER // 2) + at[None, :])
    after_producers(PDL)
    if expert < 0:
        return
    used = slots >= 0
    slot = tl.maximum(slots, 0).to(tl.int64)
    sums = _product(h, h_scale, slot, used, w2, s2, rows, M_INTER, R, G, KC, STAGES)
    tl.store(y + slot[:, None] * D + channel[None, :], tl.trans(sums).to(tl.bfloat16), mask=used[:, None])
