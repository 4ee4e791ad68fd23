"""Sparse MLA: window records, selected records and the sink in one launch, whole or split over the records.

A program owns BH heads of one token and every SPLITS-th part of its records. A tile of BT packed records is gathered
and unpacked to bf16 once, lies in shared memory once, and serves as keys and as values for all BH heads on the tensor
cores; the loop's stages fetch the slots two tiles ahead and the records one. Parts meet in `merge_kernel` in a fixed
order. A slot is page * P + offset, -1 none; its 576 data bytes are at page * stride + 576 * offset, its 8 scale bytes
behind the page's data (formats.kv_record).
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import e4m3, power_of_two, settled
from wellhead.ops.rope.kernels import PAIRS, cos_sin

DIM = tl.constexpr(512)
LEAST = tl.constexpr(1e-30)  # of a sum with a record's 1 in it; without one a low sink's exponential may be zero
QUARTER = tl.constexpr(128)  # a tile is unpacked, and the sums are kept, a quarter at a time: fewer live registers


@triton.jit
def _quarter(cache, data, scales, known, START: tl.constexpr, BT: tl.constexpr):
    """bf16 [BT, 128] of dims START .. START + 127 of records at data; scales int64 [BT], a byte a group of 64 dims."""
    column = tl.arange(0, QUARTER)[None, :]
    codes = tl.load((cache + data)[:, None] + START + column, mask=known & (START + column < 448), other=0)
    group = START // 64 + tl.arange(0, 2)[None, :]
    scale = power_of_two((scales[:, None] >> (8 * group)) & 255)
    values = tl.reshape(e4m3(codes).to(tl.float32), (BT, 2, 64)) * scale[:, :, None]
    nope = tl.reshape(values, (BT, QUARTER)).to(tl.bfloat16)
    if START == 384:  # the last 64 dims are rotary, stored as bf16
        pointer = (cache + data + 448).to(tl.pointer_type(tl.bfloat16))[:, None] + (column - 64)
        nope = tl.where(column < 64, nope, tl.load(pointer, mask=known & (column >= 64), other=0.0))
    return settled(nope)


@triton.jit
def _attend_tile(
    q0, q1, q2, q3, peak, total, acc0, acc1, acc2, acc3, cache, slots_row, at, length, scale,
    shift, stride, BT: tl.constexpr, KEYS_FIRST: tl.constexpr,
):  # fmt: skip
    """One online-softmax step over records at .. at + BT - 1 of a slot list; pages hold 2^shift records."""
    place = at + tl.arange(0, BT)
    slots = tl.load(slots_row + place, mask=place < length, other=-1)
    valid = slots >= 0
    slot = tl.maximum(slots, 0).to(tl.int64)
    page, offset = (slot >> shift) * stride, slot & ((1 << shift) - 1)
    data, known = page + offset * 576, valid[:, None]
    tail = (cache + page + (576 << shift) + offset * 8).to(tl.pointer_type(tl.int64))
    scales = tl.load(tail, mask=valid, other=0)
    kv0 = _quarter(cache, data, scales, known, 0, BT)
    kv1 = _quarter(cache, data, scales, known, 128, BT)
    kv2 = _quarter(cache, data, scales, known, 256, BT)
    kv3 = _quarter(cache, data, scales, known, 384, BT)
    if KEYS_FIRST:
        scores = tl.dot(kv0, q0)
        scores = tl.dot(kv1, q1, scores)
        scores = tl.dot(kv2, q2, scores)
        scores = tl.trans(tl.dot(kv3, q3, scores))
    else:
        scores = tl.dot(q0, tl.trans(kv0))
        scores = tl.dot(q1, tl.trans(kv1), scores)
        scores = tl.dot(q2, tl.trans(kv2), scores)
        scores = tl.dot(q3, tl.trans(kv3), scores)
    scores = tl.where(valid[None, :], scores * scale, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    anchor = tl.where(higher == float("-inf"), 0.0, higher)  # nothing valid yet: avoid inf - inf
    fade = tl.exp(peak - anchor)
    acc0, acc1, acc2, acc3 = acc0 * fade[:, None], acc1 * fade[:, None], acc2 * fade[:, None], acc3 * fade[:, None]
    exact = tl.exp(scores - anchor[:, None])
    total = total * fade + tl.sum(exact, axis=1)
    p = exact.to(tl.bfloat16)
    acc0 = tl.dot(p, kv0, acc0)
    acc1 = tl.dot(p, kv1, acc1)
    acc2 = tl.dot(p, kv2, acc2)
    acc3 = tl.dot(p, kv3, acc3)
    return higher, total, acc0, acc1, acc2, acc3


@triton.jit
def attend_kernel(
    q, window, window_slots, window_length, extra, extra_slots, extra_length, sink, out, part, part_stat, scale,
    HEADS, WINDOW_WIDTH, EXTRA_WIDTH,
    WINDOW_SHIFT: tl.constexpr, WINDOW_STRIDE: tl.constexpr, EXTRA_SHIFT: tl.constexpr, EXTRA_STRIDE: tl.constexpr,
    BH: tl.constexpr, BT: tl.constexpr, SPLITS: tl.constexpr, KEYS_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out bf16 [T, H, 512], or with SPLITS > 1 part fp32 [T, SPLITS, H, 512] and part_stat [.., 2] = (peak, total).

    q bf16 [T, H, 512]; caches u8; *_slots i32 or i64 [T, *_WIDTH], only the first *_length i32 [T] of them are looked
    at; sink fp32 [H]. Grid (T * ceil(H / BH), SPLITS), programs of one token neighbours. KEYS_FIRST computes the scores
    as records x heads: with mma.sync each warp then holds its own heads' queries and softmax, and no product is done
    twice. Probabilities are rounded to bf16 before they meet the values, their sum is not.
    """
    groups, split = tl.cdiv(HEADS, BH), tl.program_id(1)
    token = (tl.program_id(0) // groups).to(tl.int64)
    head, column = tl.program_id(0) % groups * BH + tl.arange(0, BH), tl.arange(0, QUARTER)
    if KEYS_FIRST:
        source, real = q + (token * HEADS + head)[None, :] * DIM + column[:, None], (head < HEADS)[None, :]
    else:
        source, real = q + (token * HEADS + head)[:, None] * DIM + column[None, :], (head < HEADS)[:, None]
    after_producers(PDL)
    q0 = tl.load(source, mask=real, other=0.0)
    q1 = tl.load(source + 128, mask=real, other=0.0)
    q2 = tl.load(source + 256, mask=real, other=0.0)
    q3 = tl.load(source + 384, mask=real, other=0.0)

    peak = tl.full((BH,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BH,), dtype=tl.float32)
    acc0 = tl.zeros((BH, QUARTER), dtype=tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    window_length = tl.minimum(tl.load(window_length + token), WINDOW_WIDTH)
    extra_length = tl.minimum(tl.load(extra_length + token), EXTRA_WIDTH)
    window_slots, extra_slots = window_slots + token * WINDOW_WIDTH, extra_slots + token * EXTRA_WIDTH
    window_tiles = tl.cdiv(window_length, BT)
    tiles = window_tiles + tl.cdiv(extra_length, BT)
    each = tl.cdiv(tiles, SPLITS)
    for tile in range(split * each, tl.minimum(split * each + each, tiles)):  # one loop: loads run ahead across pools
        near = tile < window_tiles
        peak, total, acc0, acc1, acc2, acc3 = _attend_tile(
            q0, q1, q2, q3, peak, total, acc0, acc1, acc2, acc3,
            tl.where(near, window, extra), tl.where(near, window_slots, extra_slots),
            tl.where(near, tile, tile - window_tiles) * BT, tl.where(near, window_length, extra_length), scale,
            tl.where(near, WINDOW_SHIFT, EXTRA_SHIFT), tl.where(near, WINDOW_STRIDE, EXTRA_STRIDE), BT, KEYS_FIRST,
        )  # fmt: skip

    inside = (head < HEADS)[:, None]
    if SPLITS == 1:
        anchor = tl.where(peak == float("-inf"), 0.0, peak)
        weight = total + tl.exp(tl.load(sink + head, mask=head < HEADS, other=0.0) - anchor)
        share = (1.0 / tl.maximum(weight, LEAST))[:, None]
        target = out + (token * HEADS + head)[:, None] * DIM + column[None, :]
    else:
        row = (token * SPLITS + split) * HEADS + head
        tl.store(part_stat + row * 2, peak, mask=head < HEADS)
        tl.store(part_stat + row * 2 + 1, total, mask=head < HEADS)
        share = tl.full((BH, 1), 1.0, dtype=tl.float32)
        target = part + row[:, None] * DIM + column[None, :]
    tl.store(target, (acc0 * share).to(target.dtype.element_ty), mask=inside)
    tl.store(target + 128, (acc1 * share).to(target.dtype.element_ty), mask=inside)
    tl.store(target + 256, (acc2 * share).to(target.dtype.element_ty), mask=inside)
    tl.store(target + 384, (acc3 * share).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _angles_of_row(positions, freqs, token, first, WIDTH: tl.constexpr):
    """fp32 (cos, sin) [WIDTH / 2] of the pairs from dim `first` on; of a row's 256 only the last 32 turn."""
    turning = first // 2 + tl.arange(0, WIDTH // 2) - (DIM // 2 - PAIRS)
    freq = tl.load(freqs + turning, mask=turning >= 0, other=0.0)
    return cos_sin(tl.load(positions + token).to(tl.float32) * freq)


@triton.jit
def _turned_back(row, cos, sin, WIDTH: tl.constexpr):
    """bf16 [WIDTH]: bf16 dims turned back, pair by pair."""
    a, b = tl.split(tl.reshape(row.to(tl.float32), (WIDTH // 2, 2)))
    return tl.reshape(tl.join(a * cos + b * sin, b * cos - a * sin), (WIDTH,)).to(tl.bfloat16)


@triton.jit
def merge_kernel(part, part_stat, sink, out, positions, freqs, HEADS, SPLITS: tl.constexpr, PDL: tl.constexpr):
    """out bf16 [B, H, 512] of the parts of one (token, head): rescaled to the largest score, summed in order; with
    positions i64 [B] and freqs fp32 [32] the last 64 dims are turned back. Grid (B, H, 2): half a row a program.
    """
    HALF: tl.constexpr = DIM // 2
    token, head, first = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * HALF
    column = first + tl.arange(0, HALF)
    split = tl.arange(0, SPLITS)
    row = (token * SPLITS + split) * HEADS + head
    bias = tl.load(sink + head)
    if positions is not None:  # a step's inputs: older than the kernel in front
        cos, sin = _angles_of_row(positions, freqs, token, first, HALF)
    after_producers(PDL)
    parts = tl.load(part + row[:, None] * DIM + column[None, :])  # on their way while the weights form
    peaks = tl.load(part_stat + row * 2)
    highest = tl.max(peaks, axis=0)
    anchor = tl.where(highest == float("-inf"), 0.0, highest)
    fade = tl.exp(peaks - anchor)
    weight = tl.exp(bias - anchor) + tl.sum(tl.load(part_stat + row * 2 + 1) * fade, axis=0)
    merged = (tl.sum(parts * fade[:, None], axis=0) / tl.maximum(weight, LEAST)).to(tl.bfloat16)
    if positions is not None:
        merged = _turned_back(merged, cos, sin, HALF)
    tl.store(out + (token * HEADS + head) * DIM + column, merged)
