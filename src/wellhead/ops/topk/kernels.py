"""Exact top-k of rows. Long ones by radix select: four counting passes over 8-bit digits, then one that writes.

Short ones in one launch. Keys are fp32 as uint32 of the same order. A program keeps its keys in registers and narrows
the range that holds the k-th largest 5 bits a turn, by a histogram of 32 bins, until that range holds no entry that
would be left out: after three to five turns for random rows, seven at most. One running count then tells every entry
its place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers

PASSES = tl.constexpr(4)
BINS = tl.constexpr(32)  # a warp's lanes: each counts one digit
LOWEST = tl.constexpr(1)  # the range of all keys; 0 is no number's key and marks what does not count
WIDTH = tl.constexpr(0xFFFFFFFE)


@triton.jit
def ordered_key(x):
    """uint32 key with the order of fp32 x: -0 equals +0, every NaN is above +inf (as in torch.sort)."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where(x != x, 0x7FFFFFFF, bits)
    flip = (bits >> 31) | -2147483648
    return (bits ^ flip).to(tl.uint32, bitcast=True)


@triton.jit
def part_of_row(length, BLOCK: tl.constexpr, SPLITS: tl.constexpr, split):
    """[start, end) of a split: whole blocks, as even as they come, so that short rows are shared too."""
    blocks = tl.cdiv(tl.cdiv(length, BLOCK), SPLITS)
    start = tl.minimum(split * blocks * BLOCK, length)
    return start, tl.minimum(start + blocks * BLOCK, length)


@triton.jit
def row_length(lengths_ptr, row, columns):
    return tl.minimum(tl.maximum(tl.load(lengths_ptr + row), 0), columns)


@triton.jit
def digit_of(histogram, wanted):
    """(d, amount above d): the largest digit d such that the digits >= d amount to at least `wanted`."""
    at_least = tl.sum(histogram, 0) - tl.cumsum(histogram, 0) + histogram
    digit = tl.sum((at_least >= wanted).to(tl.int32), 0) - 1
    bins = tl.arange(0, histogram.shape[0])
    return digit, tl.sum(tl.where(bins > digit, histogram, 0), 0)


@triton.jit
def whole_range():
    """(found, low): every key that counts lies at found .. found + low."""
    return tl.full((), LOWEST, tl.uint32), tl.full((), WIDTH, tl.uint32)


@triton.jit
def digits(key, found, low):
    """int32 [32]: how many keys each 32nd of found .. found + low holds, and the shift that makes digits of them."""
    top = low ^ (low & (low >> 1))  # rounding cannot lift it to the next power of two
    exponent = (top.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    shift = tl.maximum(exponent - 4, 0).to(tl.uint32)
    inside = key - found
    return tl.histogram(((inside >> shift) & 31).to(tl.int32), BINS, mask=inside <= low), shift


@triton.jit
def narrow(histogram, shift, found, low, above, k):
    """The digit that holds the k-th largest key: (found, low, keys above this range, keys in it or above)."""
    digit, higher = digit_of(histogram, k - above)
    above += higher
    reached = above + tl.sum(tl.where(tl.arange(0, BINS) == digit, histogram, 0), 0)
    offset = digit.to(tl.uint32) << shift
    one = tl.full((), 1, tl.uint32)
    return found + offset, tl.minimum((one << shift) - 1, low - offset), above, reached


@triton.jit
def range_of_kth(key, k, enough, found, low, reached):
    """(found, low, above): the k-th largest key is in found .. found + low, `above` keys are higher.

    Of the range given, which `reached` >= k keys reach and none exceeds. Narrowed until no more than `enough` >= k keys
    reach it, or it is one key: with enough = k everything that reaches it is chosen, or the rest are ties.
    """
    above = tl.full((), 0, tl.int32)
    while (reached > enough) & (low > 0):
        histogram, shift = digits(key, found, low)
        found, low, above, reached = narrow(histogram, shift, found, low, above, k)
    return found, low, above


@triton.jit
def pages_of(table, entries, live, PAGE: tl.constexpr):
    """The page number of each entry; nothing is read with PAGE 0."""
    if PAGE > 0:
        entries = tl.load(table + entries // PAGE, mask=live, other=0)
    return entries


@triton.jit
def write_slots(key, entries, pages, found, low, ties_wanted, above, ties, out, PAGE: tl.constexpr):
    """Slots of the chosen ones of these entries, ascending: those above the range found .. found + low, and of those in
    it the first `ties_wanted` of the row.

    above and ties: how many of the row came before these entries; returned with these. At most 2^14 entries: both
    counts run in one word. PAGE 0 writes entries.
    """
    tie = (key - found <= low).to(tl.int32)
    both = ((key > found + low).to(tl.int32) << 16) | tie
    before = tl.cumsum(both, 0) - both
    ties_before = ties + (before & 0xFFFF)
    at = above + (before >> 16) + tl.minimum(ties_before, ties_wanted)
    live = (both > 1) | ((tie == 1) & (ties_before < ties_wanted))
    slot = entries.to(tl.int64)
    if PAGE > 0:
        slot = tl.where(pages < 0, -1, pages.to(tl.int64) * PAGE + entries % PAGE)
    tl.store(out + at, slot.to(out.dtype.element_ty), mask=live)
    total = tl.sum(both, 0)
    return above + (total >> 16), ties + (total & 0xFFFF)


@triton.jit
def keys_at(row, entries, end, columns):
    """Keys of these entries of a row, 0 from `end` on; reading on to `columns` needs no mask within 16 bytes."""
    return tl.where(entries < end, ordered_key(tl.load(row + entries, mask=entries < columns, other=0.0)), 0)


@triton.jit
def fill(out, first, k, step, FILL: tl.constexpr):
    """-1 behind the last slot of a row."""
    for start in range(first, k, step):
        at = start + tl.arange(0, FILL)
        tl.store(out + at, tl.full([FILL], -1, tl.int64).to(out.dtype.element_ty), mask=at < k)


@triton.jit
def choose_row(
    logits_ptr, logits_stride, lengths_ptr, table_ptr, table_stride, out_ptr, out_stride, columns, k,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, FILL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A whole row of at most BLOCK columns. Grid (rows,)."""
    after_producers(PDL)
    row = tl.program_id(0).to(tl.int64)
    out = out_ptr + row * out_stride
    entries = tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * logits_stride + entries, mask=entries < columns, other=0.0)
    table = table_ptr + row * table_stride
    WHOLE: tl.constexpr = BLOCK <= 4096  # written at once; the places of more entries would not fit into registers
    pages = entries
    if WHOLE:
        pages = pages_of(table, entries, entries < columns, PAGE)  # asked for before the length is known, as logits are
    length = row_length(lengths_ptr, row, columns)
    wanted = tl.minimum(length, k)
    fill(out, wanted, k, FILL, FILL)
    key = tl.where(entries < length, ordered_key(logits), 0)
    found, low = whole_range()
    found, low, above = range_of_kth(key, wanted, wanted, found, low, length)
    if WHOLE:
        write_slots(key, entries, pages, found, low, wanted - above, 0, 0, out, PAGE)
    else:
        wanted, above, ties = wanted - above, tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
        for first in range(0, length, 4096):
            some = first + tl.arange(0, 4096)
            numbers = pages_of(table, some, some < length, PAGE)
            keys = keys_at(logits_ptr + row * logits_stride, some, length, columns)
            above, ties = write_slots(keys, some, numbers, found, low, wanted, above, ties, out, PAGE)


@triton.jit
def count_part(row, start, end, prefix, PASS: tl.constexpr, BLOCK: tl.constexpr):
    """int32 [256]: digit PASS of the keys at start .. end of a row that begin with the digits of `prefix`."""
    histogram = tl.zeros([256], tl.int32)
    for first in range(start, end, BLOCK):
        entries = first + tl.arange(0, BLOCK)
        live = entries < end
        key = ordered_key(tl.load(row + entries, mask=live, other=0.0))
        if PASS > 0:
            live = live & ((key >> (32 - 8 * PASS)) == prefix)
        digit = (key >> (24 - 8 * PASS)) & 0xFF
        histogram += tl.histogram(digit.to(tl.int32), 256, mask=live)
    return histogram


@triton.jit
def write_part(
    row, table, out, start, end, threshold, all_of_them, ties_before, ties_wanted, taken,
    BLOCK: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Slots of the chosen entries at start .. end of a row, ascending, from out[taken] on.

    Entries above the threshold key are in, and of those equal to it the first `ties_wanted` of the row, `ties_before`
    of which lie before start. PAGE 0 writes entries instead of slots.
    """
    for first in range(start, end, BLOCK):
        entries = first + tl.arange(0, BLOCK)
        live = entries < end
        if not all_of_them:
            key = ordered_key(tl.load(row + entries, mask=live, other=0.0))
            tie = (live & (key == threshold)).to(tl.int32)
            early = ties_before + tl.cumsum(tie, 0) - tie < ties_wanted
            live = live & ((key > threshold) | ((tie == 1) & early))
            ties_before += tl.sum(tie, 0)
        picked = live.to(tl.int32)
        at = taken + tl.cumsum(picked, 0) - picked
        taken += tl.sum(picked, 0)
        slot = entries.to(tl.int64)
        if PAGE > 0:
            page = tl.load(table + entries // PAGE, mask=live, other=0).to(tl.int64)
            slot = tl.where(page < 0, -1, page * PAGE + entries % PAGE)
        tl.store(out + at, slot.to(out.dtype.element_ty), mask=live)


@triton.jit
def settle(counts_ptr, prefix_ptr, wanted_ptr, above_ptr, row, split, k, PASS: tl.constexpr, SPLITS: tl.constexpr):
    """What pass PASS - 1 decided: (key prefix, entries still wanted among those with this prefix).

    Each program finds it again from the histograms; split 0 writes it down for the pass after this one, with the
    number of entries of every split that the digit put above the threshold.
    """
    bins, splits = tl.arange(0, 256), tl.arange(0, SPLITS)
    histograms = tl.load(counts_ptr + (row * SPLITS + splits[:, None]) * 256 + bins[None, :])
    prefix = tl.full((), 0, tl.uint32)
    wanted = k
    if PASS > 1:
        prefix = tl.load(prefix_ptr + row * 5 + PASS - 1).to(tl.uint32, bitcast=True)
        wanted = tl.load(wanted_ptr + row * 5 + PASS - 1)
    digit, above = digit_of(tl.sum(histograms, 0), wanted)
    prefix = (prefix << 8) | digit.to(tl.uint32)
    wanted -= above
    if split == 0:
        tl.store(prefix_ptr + row * 5 + PASS, prefix.to(tl.int32, bitcast=True))
        tl.store(wanted_ptr + row * 5 + PASS, wanted)
        above_each = tl.sum(tl.where(bins[None, :] > digit, histograms, 0), 1)
        tl.store(above_ptr + (row * 4 + PASS - 1) * SPLITS + splits, above_each)
    return prefix, wanted


@triton.jit
def count_digits(
    logits_ptr, logits_stride, lengths_ptr, counts_in_ptr, counts_ptr, prefix_ptr, wanted_ptr, above_ptr,
    columns, k,
    PASS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Histogram of digit PASS of the keys in one part of a row that share the prefix found so far.

    counts int32 [rows, SPLITS, 256] of this pass, counts_in of the last one. Rows with no more than k entries need
    no threshold and are skipped. Grid (SPLITS, rows).
    """
    after_producers(PDL)
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = row_length(lengths_ptr, row, columns)
    if length <= k:
        return
    prefix = tl.full((), 0, tl.uint32)
    if PASS > 0:
        prefix, _ = settle(counts_in_ptr, prefix_ptr, wanted_ptr, above_ptr, row, split, k, PASS, SPLITS)
    start, end = part_of_row(length, BLOCK, SPLITS, split)
    histogram = count_part(logits_ptr + row * logits_stride, start, end, prefix, PASS, BLOCK)
    tl.store(counts_ptr + (row * SPLITS + split) * 256 + tl.arange(0, 256), histogram)


@triton.jit
def write_chosen(
    logits_ptr, logits_stride, lengths_ptr, counts_in_ptr, prefix_ptr, wanted_ptr, above_ptr,
    table_ptr, table_stride, out_ptr, out_stride, columns, k,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, FILL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The chosen entries of one part of a row in ascending order, as slots, and -1 behind the last of the row.

    Grid (SPLITS, rows).
    """
    after_producers(PDL)
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = row_length(lengths_ptr, row, columns)
    out_ptr += row * out_stride
    fill(out_ptr, tl.minimum(length, k) + split * FILL, k, SPLITS * FILL, FILL)

    start, end = part_of_row(length, BLOCK, SPLITS, split)
    threshold = tl.full((), 0, tl.uint32)
    ties_before, ties_wanted, taken = 0, 0, start
    if length > k:
        splits, bins = tl.arange(0, SPLITS), tl.arange(0, 256)
        counts = tl.load(counts_in_ptr + (row * SPLITS + splits[:, None]) * 256 + bins[None, :])
        prefix = tl.load(prefix_ptr + row * 5 + 3).to(tl.uint32, bitcast=True)
        wanted = tl.load(wanted_ptr + row * 5 + 3)
        digit, above = digit_of(tl.sum(counts, 0), wanted)
        threshold = (prefix << 8) | digit.to(tl.uint32)
        ties_wanted = wanted - above
        earlier = splits < split
        ties_each = tl.sum(tl.where(bins[None, :] == digit, counts, 0), 1)
        above_each = tl.sum(tl.where(bins[None, :] > digit, counts, 0), 1)
        for settled in tl.static_range(3):
            above_each += tl.load(above_ptr + (row * 4 + settled) * SPLITS + splits)
        ties_before = tl.sum(tl.where(earlier, ties_each, 0), 0)
        taken = tl.sum(tl.where(earlier, above_each, 0), 0) + tl.minimum(ties_before, ties_wanted)
    write_part(
        logits_ptr + row * logits_stride, table_ptr + row * table_stride, out_ptr, start, end, threshold, length <= k,
        ties_before, ties_wanted, taken, BLOCK, PAGE,
    )  # fmt: skip


def launch_passes(
    logits, lengths, table, out, counts, prefix, wanted, above, *, k, page, fill, splits, block, **options
):  # fmt: skip
    """Four counting passes and the writing one. counts [2, rows, splits, 256]: passes write them in turn."""
    rows, columns = logits.shape
    if rows == 0:
        return
    grid = (splits, rows)
    for number in range(PASSES.value):
        count_digits[grid](
            logits, logits.stride(0), lengths, counts[1 - number % 2], counts[number % 2], prefix, wanted, above,
            columns, k, PASS=number, SPLITS=splits, BLOCK=block, **options,
        )  # fmt: skip
    write_chosen[grid](
        logits, logits.stride(0), lengths, counts[1], prefix, wanted, above,
        table if page else lengths, table.stride(0) if page else 0, out, out.stride(0), columns, k,
        SPLITS=splits, BLOCK=block, PAGE=page, FILL=fill, **options,
    )  # fmt: skip
