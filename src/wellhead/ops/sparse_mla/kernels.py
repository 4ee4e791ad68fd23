"""Sparse MLA decode: window records, selected records and the sink in one launch, split over the records.

A program owns BH heads of one token and every SPLITS-th part of its records. A tile of BT packed records is gathered
and unpacked to bf16 once and serves as keys and as values for all BH heads on the tensor cores. Parts meet in
`merge_kernel` in a fixed order. A slot is page * P + offset, -1 none; its 576 data bytes are at page * stride + 576 *
offset, its 8 scale bytes behind the page's data (formats.kv_record).
"""

import triton
import triton.language as tl

from wellhead.ops.device_formats import power_of_two

DIM = tl.constexpr(512)
QUARTER = tl.constexpr(128)  # a tile is unpacked, and the sums are kept, a quarter at a time: fewer live registers


@triton.jit
def _quarter(
    cache, data, tail, known, START: tl.constexpr, BT: tl.constexpr
):
    """bf16 [BT, 128] of dims START .. START + 127 of records at data and tail (their scales); zeros if not known."""
    column = tl.arange(0, QUARTER)[None, :]
    codes = tl.load((cache + data)[:, None] + START + column, mask=known & (START + column < 448), other=0)
    group = START // 64 + tl.arange(0, 2)[None, :]
    scale = power_of_two(tl.load((cache + tail)[:, None] + group, mask=known & (group < 7), other=0))
    values = tl.reshape(codes.to(tl.float8e4nv, bitcast=True).to(tl.float32), (BT, 2, 64)) * scale[:, :, None]
    nope = tl.reshape(values, (BT, QUARTER)).to(tl.bfloat16)
    if START == 384:  # the last 64 dims are rotary, stored as bf16
        pointer = (cache + data + 448).to(tl.pointer_type(tl.bfloat16))[:, None] + (column - 64)
        nope = tl.where(column < 64, nope, tl.load(pointer, mask=known & (column >= 64), other=0.0))
    return nope


@triton.jit
def _attend_tile(
    q0, q1, q2, q3, peak, total, acc0, acc1, acc2, acc3, cache, slots_row, at, length, scale,
    PAGE: tl.constexpr, STRIDE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One online-softmax step over records at .. at + BT - 1 of a slot list."""
    place = at + tl.arange(0, BT)
    slots = tl.load(slots_row + place, mask=place < length, other=-1)
    valid = slots >= 0
    slot = tl.maximum(slots, 0).to(tl.int64)
    page, offset = slot // PAGE * STRIDE, slot % PAGE
    data, tail, known = page + offset * 576, page + PAGE * 576 + offset * 8, valid[:, None]
    kv0 = _quarter(cache, data, tail, known, 0, BT)
    kv1 = _quarter(cache, data, tail, known, 128, BT)
    kv2 = _quarter(cache, data, tail, known, 256, BT)
    kv3 = _quarter(cache, data, tail, known, 384, BT)
    scores = tl.zeros((q0.shape[0], BT), dtype=tl.float32)
    scores = tl.dot(q0, tl.trans(kv0), scores)
    scores = tl.dot(q1, tl.trans(kv1), scores)
    scores = tl.dot(q2, tl.trans(kv2), scores)
    scores = tl.dot(q3, tl.trans(kv3), scores) * scale
    scores = tl.where(valid[None, :], scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    anchor = tl.where(higher == float("-inf"), 0.0, higher)  # nothing valid yet: avoid inf - inf
    exact = tl.exp(scores - anchor[:, None])
    p = exact.to(tl.bfloat16)
    fade = tl.exp(peak - anchor)
    total = total * fade + tl.sum(exact, axis=1)
    fade = fade[:, None]
    acc0 = tl.dot(p, kv0, acc0 * fade)
    acc1 = tl.dot(p, kv1, acc1 * fade)
    acc2 = tl.dot(p, kv2, acc2 * fade)
    acc3 = tl.dot(p, kv3, acc3 * fade)
    return higher, total, acc0, acc1, acc2, acc3


@triton.jit
def attend_kernel(
    q, window, window_slots, window_length, extra, extra_slots, extra_length, sink, out, part, part_stat, scale,
    HEADS, WINDOW_WIDTH, EXTRA_WIDTH,
    WINDOW_PAGE: tl.constexpr, WINDOW_STRIDE: tl.constexpr, EXTRA_PAGE: tl.constexpr, EXTRA_STRIDE: tl.constexpr,
    BH: tl.constexpr, BT: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """out bf16 [B, H, 512] (SPLITS 1), or part fp32 [B, SPLITS, H, 512] and part_stat fp32 [B, SPLITS, H, 2].

    q bf16 [B, H, 512]; *_slots int [B, *_WIDTH] of which the first *_length[b] count; sink fp32 [H]. part_stat holds
    the largest score of the part (-inf: no record) and the sum of e^(score - largest).
    """
    token, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head, column = tl.program_id(1) * BH + tl.arange(0, BH), tl.arange(0, QUARTER)
    inside = (head < HEADS)[:, None]
    place = (token * HEADS + head)[:, None] * DIM + column[None, :]
    q0 = tl.load(q + place, mask=inside, other=0.0)
    q1 = tl.load(q + place + 128, mask=inside, other=0.0)
    q2 = tl.load(q + place + 256, mask=inside, other=0.0)
    q3 = tl.load(q + place + 384, mask=inside, other=0.0)
    window_length, extra_length = tl.load(window_length + token), tl.load(extra_length + token)
    window_tiles, extra_tiles = tl.cdiv(window_length, BT), tl.cdiv(extra_length, BT)
    each = tl.cdiv(window_tiles + extra_tiles, SPLITS)
    first, last = split * each, tl.minimum((split + 1) * each, window_tiles + extra_tiles)

    peak = tl.full((BH,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BH,), dtype=tl.float32)
    acc0 = tl.zeros((BH, QUARTER), dtype=tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    for tile in range(first, tl.minimum(last, window_tiles)):
        peak, total, acc0, acc1, acc2, acc3 = _attend_tile(
            q0, q1, q2, q3, peak, total, acc0, acc1, acc2, acc3,
            window, window_slots + token * WINDOW_WIDTH, tile * BT, window_length, scale,
            WINDOW_PAGE, WINDOW_STRIDE, BT,
        )  # fmt: skip
    for tile in range(tl.maximum(first - window_tiles, 0), tl.maximum(last - window_tiles, 0)):
        peak, total, acc0, acc1, acc2, acc3 = _attend_tile(
            q0, q1, q2, q3, peak, total, acc0, acc1, acc2, acc3,
            extra, extra_slots + token * EXTRA_WIDTH, tile * BT, extra_length, scale,
            EXTRA_PAGE, EXTRA_STRIDE, BT,
        )  # fmt: skip

    if SPLITS == 1:
        anchor = tl.where(peak == float("-inf"), 0.0, peak)
        weight = total + tl.exp(tl.load(sink + head, mask=head < HEADS, other=0.0) - anchor)
        share = (1.0 / weight)[:, None]
        tl.store(out + place, (acc0 * share).to(tl.bfloat16), mask=inside)
        tl.store(out + place + 128, (acc1 * share).to(tl.bfloat16), mask=inside)
        tl.store(out + place + 256, (acc2 * share).to(tl.bfloat16), mask=inside)
        tl.store(out + place + 384, (acc3 * share).to(tl.bfloat16), mask=inside)
    else:
        row = (token * SPLITS + split) * HEADS + head
        place = row[:, None] * DIM + column[None, :]
        tl.store(part + place, acc0, mask=inside)
        tl.store(part + place + 128, acc1, mask=inside)
        tl.store(part + place + 256, acc2, mask=inside)
        tl.store(part + place + 384, acc3, mask=inside)
        tl.store(part_stat + row * 2, peak, mask=head < HEADS)
        tl.store(part_stat + row * 2 + 1, total, mask=head < HEADS)


@triton.jit
def merge_kernel(part, part_stat, sink, out, HEADS, SPLITS: tl.constexpr):
    """out bf16 [B, H, 512] of the parts of one (token, head): rescaled to the largest score, summed in order."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, DIM)
    highest = tl.full((), float("-inf"), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        highest = tl.maximum(highest, tl.load(part_stat + ((token * SPLITS + split) * HEADS + head) * 2))
    anchor = tl.where(highest == float("-inf"), 0.0, highest)
    weight = tl.exp(tl.load(sink + head) - anchor)
    acc = tl.zeros((DIM,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        row = (token * SPLITS + split) * HEADS + head
        fade = tl.exp(tl.load(part_stat + row * 2) - anchor)
        weight += tl.load(part_stat + row * 2 + 1) * fade
        acc += tl.load(part + row * DIM + column) * fade
    tl.store(out + (token * HEADS + head) * DIM + column, (acc / weight).to(tl.bfloat16))
