"""Sparse MLA decode: window records, selected records and the sink in one launch, split over the records.

A program owns BH heads of one token and every SPLITS-th part of its records. A tile of BT packed records is gathered
and unpacked to bf16 once and serves as keys and as values for all BH heads on the tensor cores, while the bytes of the
next tile and the slots of the one after it are on their way. Parts meet in `merge_kernel` in a fixed order. A slot is
page * P + offset, -1 none; its 576 data bytes are at page * stride + 576 * offset, its 8 scale bytes behind the page's
data (formats.kv_record).
"""

import triton
import triton.language as tl

from wellhead.ops.device_formats import power_of_two
from wellhead.ops.overlap import after_producers

DIM = tl.constexpr(512)
WIDE = tl.constexpr(128)  # dims of the first three pieces of a record; the other two, E4M3 and rotary bf16, have 64
NARROW = tl.constexpr(64)


@triton.jit
def _slots_of(window_slots, window_length, extra_slots, extra_length, tile, window_tiles, BT: tl.constexpr):
    """int64 [BT] slots of a tile, the window's tiles first; -1 beyond the length."""
    lane = tl.arange(0, BT)
    at = tile * BT + lane
    mine = tl.load(window_slots + at, mask=(tile < window_tiles) & (at < window_length), other=-1)
    at = (tile - window_tiles) * BT + lane
    other = tl.load(extra_slots + at, mask=(tile >= window_tiles) & (at < extra_length), other=-1)
    return tl.where(tile < window_tiles, mine.to(tl.int64), other.to(tl.int64))


@triton.jit
def _gather(
    window, extra, slots, in_window,
    WINDOW_PAGE: tl.constexpr, WINDOW_STRIDE: tl.constexpr, EXTRA_PAGE: tl.constexpr, EXTRA_STRIDE: tl.constexpr,
):  # fmt: skip
    """The bytes of a tile's records: three pieces u8 [BT, 128], u8 [BT, 64], bf16 [BT, 64], scales int64 [BT]."""
    valid = slots >= 0
    slot = tl.maximum(slots, 0)
    page, offset = slot // WINDOW_PAGE * WINDOW_STRIDE, slot % WINDOW_PAGE
    data, tail = page + offset * 576, page + WINDOW_PAGE * 576 + offset * 8
    page, offset = slot // EXTRA_PAGE * EXTRA_STRIDE, slot % EXTRA_PAGE
    data = tl.where(in_window, data, page + offset * 576)
    tail = tl.where(in_window, tail, page + EXTRA_PAGE * 576 + offset * 8)
    cache = tl.where(in_window, window, extra)
    record, known = (cache + data)[:, None], valid[:, None]
    wide, narrow = tl.arange(0, WIDE)[None, :], tl.arange(0, NARROW)[None, :]
    c0 = tl.load(record + wide, mask=known, other=0)
    c1 = tl.load(record + 128 + wide, mask=known, other=0)
    c2 = tl.load(record + 256 + wide, mask=known, other=0)
    c3 = tl.load(record + 384 + narrow, mask=known, other=0)
    rotary = (cache + data + 448).to(tl.pointer_type(tl.bfloat16))[:, None] + narrow
    c4 = tl.load(rotary, mask=known, other=0.0)
    scales = tl.load((cache + tail).to(tl.pointer_type(tl.int64)), mask=valid, other=0)
    return c0, c1, c2, c3, c4, scales


@triton.jit
def _unpack(codes, scales, GROUP: tl.constexpr, BT: tl.constexpr, COLUMNS: tl.constexpr):
    """bf16 [BT, COLUMNS] of E4M3 codes u8, from scale group GROUP on, one group for 64 columns."""
    values = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    scale = power_of_two((scales >> (8 * GROUP)) & 255)[:, None]
    if COLUMNS == 128:
        right = power_of_two((scales >> (8 * GROUP + 8)) & 255)[:, None]
        scale = tl.where(tl.arange(0, COLUMNS)[None, :] < 64, scale, right)
    return (values * scale).to(tl.bfloat16)


@triton.jit
def attend_kernel(
    q, window, window_slots, window_length, extra, extra_slots, extra_length, sink, out, part, part_stat,
    scale, HEADS, WINDOW_WIDTH, EXTRA_WIDTH,
    WINDOW_PAGE: tl.constexpr, WINDOW_STRIDE: tl.constexpr, EXTRA_PAGE: tl.constexpr, EXTRA_STRIDE: tl.constexpr,
    BH: tl.constexpr, BT: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out bf16 [B, H, 512], or with SPLITS > 1 part fp32 [B, SPLITS, H, 512] and part_stat [.., 2] = (peak, total).

    q bf16 [B, H, 512]; caches u8; slots i32 or i64 [B, WIDTH], only the first `length` i32 [B] of them are looked at;
    sink fp32 [H]. Probabilities are rounded to bf16 before they meet the values, their sum is not.
    """
    token, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    inside = (head < HEADS)[:, None]
    wide, narrow = tl.arange(0, WIDE)[None, :], tl.arange(0, NARROW)[None, :]
    place = (token * HEADS + head)[:, None] * DIM
    after_producers(PDL)
    q0 = tl.load(q + place + wide, mask=inside, other=0.0)
    q1 = tl.load(q + place + 128 + wide, mask=inside, other=0.0)
    q2 = tl.load(q + place + 256 + wide, mask=inside, other=0.0)
    q3 = tl.load(q + place + 384 + narrow, mask=inside, other=0.0)
    q4 = tl.load(q + place + 448 + narrow, mask=inside, other=0.0)

    mine = tl.minimum(tl.load(window_length + token), WINDOW_WIDTH)
    other = tl.minimum(tl.load(extra_length + token), EXTRA_WIDTH)
    window_slots += token * WINDOW_WIDTH
    extra_slots += token * EXTRA_WIDTH
    window_tiles = tl.cdiv(mine, BT)
    tiles = window_tiles + tl.cdiv(other, BT)
    each = tl.cdiv(tiles, SPLITS)
    first, last = split * each, tl.minimum(split * each + each, tiles)

    slots = _slots_of(window_slots, mine, extra_slots, other, first, window_tiles, BT)
    later = _slots_of(window_slots, mine, extra_slots, other, first + 1, window_tiles, BT)
    c0, c1, c2, c3, c4, scales = _gather(
        window, extra, slots, first < window_tiles, WINDOW_PAGE, WINDOW_STRIDE, EXTRA_PAGE, EXTRA_STRIDE
    )  # fmt: skip
    peak = tl.full((BH,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BH,), dtype=tl.float32)
    acc0 = tl.zeros((BH, WIDE), dtype=tl.float32)
    acc1, acc2 = acc0, acc0
    acc3 = tl.zeros((BH, NARROW), dtype=tl.float32)
    acc4 = acc3
    for tile in range(first, last):
        k0, k1 = _unpack(c0, scales, 0, BT, WIDE), _unpack(c1, scales, 2, BT, WIDE)
        k2, k3, k4 = _unpack(c2, scales, 4, BT, WIDE), _unpack(c3, scales, 6, BT, NARROW), c4
        valid = slots >= 0
        slots = later
        later = _slots_of(window_slots, mine, extra_slots, other, tile + 2, window_tiles, BT)
        c0, c1, c2, c3, c4, scales = _gather(
            window, extra, slots, tile + 1 < window_tiles, WINDOW_PAGE, WINDOW_STRIDE, EXTRA_PAGE, EXTRA_STRIDE
        )  # fmt: skip
        scores = tl.dot(q0, tl.trans(k0))
        scores = tl.dot(q1, tl.trans(k1), scores)
        scores = tl.dot(q2, tl.trans(k2), scores)
        scores = tl.dot(q3, tl.trans(k3), scores)
        scores = tl.dot(q4, tl.trans(k4), scores) * scale
        scores = tl.where(valid[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)  # nothing valid yet: avoid inf - inf
        exact = tl.exp(scores - anchor[:, None])
        p = exact.to(tl.bfloat16)
        fade = tl.exp(peak - anchor)
        total = total * fade + tl.sum(exact, axis=1)
        peak, fade = higher, fade[:, None]
        acc0 = tl.dot(p, k0, acc0 * fade)
        acc1 = tl.dot(p, k1, acc1 * fade)
        acc2 = tl.dot(p, k2, acc2 * fade)
        acc3 = tl.dot(p, k3, acc3 * fade)
        acc4 = tl.dot(p, k4, acc4 * fade)

    if SPLITS == 1:
        anchor = tl.where(peak == float("-inf"), 0.0, peak)
        weight = total + tl.exp(tl.load(sink + head, mask=head < HEADS, other=0.0) - anchor)
        share = (1.0 / weight)[:, None]
        target = out + place
    else:
        row = (token * SPLITS + split) * HEADS + head
        tl.store(part_stat + row * 2, peak, mask=head < HEADS)
        tl.store(part_stat + row * 2 + 1, total, mask=head < HEADS)
        share = tl.full((BH, 1), 1.0, dtype=tl.float32)
        target = part + row[:, None] * DIM
    tl.store(target + wide, (acc0 * share).to(target.dtype.element_ty), mask=inside)
    tl.store(target + 128 + wide, (acc1 * share).to(target.dtype.element_ty), mask=inside)
    tl.store(target + 256 + wide, (acc2 * share).to(target.dtype.element_ty), mask=inside)
    tl.store(target + 384 + narrow, (acc3 * share).to(target.dtype.element_ty), mask=inside)
    tl.store(target + 448 + narrow, (acc4 * share).to(target.dtype.element_ty), mask=inside)


@triton.jit
def merge_kernel(part, part_stat, sink, out, HEADS, SPLITS: tl.constexpr, PDL: tl.constexpr):
    """out bf16 [B, H, 512] of the parts of one (token, head): rescaled to the largest score, summed in order."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, DIM)
    split = tl.arange(0, SPLITS)
    row = (token * SPLITS + split) * HEADS + head
    bias = tl.load(sink + head)
    after_producers(PDL)
    peaks = tl.load(part_stat + row * 2)
    highest = tl.max(peaks, axis=0)
    anchor = tl.where(highest == float("-inf"), 0.0, highest)
    fade = tl.exp(peaks - anchor)
    weight = tl.exp(bias - anchor) + tl.sum(tl.load(part_stat + row * 2 + 1) * fade, axis=0)
    parts = tl.load(part + row[:, None] * DIM + column[None, :])
    acc = tl.sum(parts * fade[:, None], axis=0)
    tl.store(out + (token * HEADS + head) * DIM + column, (acc / weight).to(tl.bfloat16))
