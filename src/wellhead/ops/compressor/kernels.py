"""The compressor's decode step: keep one token's row, and where it ends a block pool, norm, rotate and store the entry.

One program a token. The softmax runs per channel over a block's rows, ROWS at a time, with the token's own row taken
from the projection instead of the ring: a row is never read in the launch that writes it.
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import e4m3_bytes, power_of_two, scale_exponent
from wellhead.ops.indexer.rounding import store_key

ROTATED = tl.constexpr(64)  # the last dims of an entry
NOPE = tl.constexpr(448)  # dims of a packed record that are E4M3
RECORD = tl.constexpr(576)  # its data bytes


@triton.jit
def softmax_step(peak, total, acc, value, score):
    """(peak, total, acc) fp32 [D] after more rows: value and score fp32 [ROWS, D]."""
    higher = tl.maximum(peak, tl.max(score, axis=0))
    weight, fade = tl.exp(score - higher[None, :]), tl.exp(peak - higher)
    return higher, total * fade + tl.sum(weight, axis=0), acc * fade + tl.sum(weight * value, axis=0)


@triton.jit
def _pooled(
    ring, own_value, own_score, position,
    D: tl.constexpr, RATIO: tl.constexpr, OVERLAP: tl.constexpr, RING: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """fp32 [D] of the block that ends at `position`; ring rows are (kv [W], score [W]), W = OVERLAP D.

    The own row is among the last ROWS, the only ones if OVERLAP is 2; with one half a block's rows all exist. So no
    maximum is -inf.
    """
    WIDTH: tl.constexpr = OVERLAP * D
    POOLED: tl.constexpr = OVERLAP * RATIO
    channel = tl.arange(0, D)
    peak = tl.full((D,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((D,), dtype=tl.float32)
    acc = tl.zeros((D,), dtype=tl.float32)
    for at in range(0, POOLED, ROWS):
        row = at + tl.arange(0, ROWS)
        before = position - (POOLED - 1) + row
        half = tl.where(row >= RATIO, WIDTH - D, 0)  # the block before gives half A, the block itself half B
        place = tl.maximum(before, 0) % RING * (2 * WIDTH) + half
        there = ((before >= 0) & (row < POOLED - 1))[:, None]
        value = tl.load(ring + place[:, None] + channel[None, :], mask=there, other=0.0)
        score = tl.load(ring + WIDTH + place[:, None] + channel[None, :], mask=there, other=float("-inf"))
        mine = (row == POOLED - 1)[:, None]
        value = tl.where(mine, own_value[None, :], value)
        score = tl.where(mine, own_score[None, :], score)
        peak, total, acc = softmax_step(peak, total, acc, value, score)
    return acc / total


@triton.jit
def normed_and_rotated(pooled, norm, eps, cos, sin, token, D: tl.constexpr):
    """bf16 [D]: RMS norm of bf16(pooled), rounded, then pairs of the last 64 dims turned, rounded."""
    wide = pooled.to(tl.bfloat16).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    normed = (wide * scale * tl.load(norm + tl.arange(0, D)).to(tl.float32)).to(tl.bfloat16).to(tl.float32)
    a, b = tl.split(tl.reshape(normed, (D // 2, 2)))
    pair = tl.arange(0, D // 2) - (D - ROTATED) // 2
    c = tl.load(cos + token * (ROTATED // 2) + pair, mask=pair >= 0, other=1.0)
    s = tl.load(sin + token * (ROTATED // 2) + pair, mask=pair >= 0, other=0.0)
    return tl.reshape(tl.join(a * c - b * s, a * s + b * c), (D,)).to(tl.bfloat16)


@triton.jit
def _store_record(entry, slot, out, STRIDE, D: tl.constexpr, PAGE: tl.constexpr):
    """bf16 [D], D 512, rounded as `formats.kv_record` to slot (-1: nowhere) of out u8, pages STRIDE bytes apart."""
    if slot >= 0:
        column, group = tl.arange(0, D), tl.arange(0, 8)
        page, offset = out + slot // PAGE * STRIDE, slot % PAGE
        data, tail = page + offset * RECORD, page + PAGE * RECORD + offset * 8
        values = tl.reshape(entry.to(tl.float32), (8, 64))
        exponent = scale_exponent(tl.max(tl.abs(values), axis=1))
        codes = e4m3_bytes(values * power_of_two(254 - exponent)[:, None])
        place = group[:, None] * 64 + tl.arange(0, 64)[None, :]
        tl.store(data + place, codes, mask=(group < 7)[:, None])
        tl.store(data.to(tl.pointer_type(tl.bfloat16)) + (column - NOPE // 2), entry, mask=column >= NOPE)
        tl.store(tail + group, tl.where(group < 7, exponent, 0).to(tl.uint8))


@triton.jit
def store_entry(entry, at, slots, out, STRIDE, D: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr):
    """bf16 [D] to slot slots[at] of out u8, as an index key of KEYS bits or as a record."""
    if KEYS > 0:
        store_key(entry, tl.load(slots + at), out, STRIDE, KEYS == 4)
    else:
        _store_record(entry, tl.load(slots + at), out, STRIDE, D, PAGE)


@triton.jit
def advance_kernel(
    projected, ape, positions, state_slots, state, norm, cos, sin, slots, out, eps, STRIDE,
    D: tl.constexpr, RATIO: tl.constexpr, OVERLAP: tl.constexpr, RING: tl.constexpr, ROWS: tl.constexpr,
    PAGE: tl.constexpr, KEYS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """state[state_slots[t], positions[t] mod RING] = (kv, gate + ape); the entry of a block that ends there to `out`.

    projected fp32 [T, 2W] (kv, gate), ape fp32 [RATIO, W], state fp32 [slots, RING, 2W], norm [D], cos and sin
    fp32 [T, 32] of the block's first position. out u8 are pages STRIDE bytes apart, of PAGE packed records (D 512,
    formats.kv_record) or of 64 index keys of KEYS bits, 8 or 4 (D 128, formats.index_key); slots int64 [T], -1 none.
    """
    after_producers(PDL)
    WIDTH: tl.constexpr = OVERLAP * D
    token = tl.program_id(0).to(tl.int64)
    request = tl.load(state_slots + token).to(tl.int64)
    if request < 0:
        return
    position = tl.load(positions + token)
    ring = state + request * (RING * 2 * WIDTH)
    own, bias = projected + token * (2 * WIDTH), ape + position % RATIO * WIDTH
    channel = tl.arange(0, WIDTH)
    row = ring + position % RING * (2 * WIDTH) + channel
    tl.store(row, tl.load(own + channel))
    tl.store(row + WIDTH, tl.load(own + WIDTH + channel) + tl.load(bias + channel))
    if (position + 1) % RATIO != 0:
        return
    column = tl.arange(0, D)
    last = WIDTH - D + column  # half B where there are two
    own_score = tl.load(own + WIDTH + last) + tl.load(bias + last)
    pooled = _pooled(ring, tl.load(own + last), own_score, position, D, RATIO, OVERLAP, RING, ROWS)
    entry = normed_and_rotated(pooled, norm, eps, cos, sin, token, D)
    store_entry(entry, token, slots, out, STRIDE, D, PAGE, KEYS)
