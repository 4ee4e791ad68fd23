"""Exact top-k of rows by radix select: four passes over 8-bit digits of an order-preserving key, then one pass that
writes the chosen entries in ascending order.

A short row is one program's, which keeps its keys in registers and finds the threshold bit by bit, in one launch. Of a
long row every program counts the digits of its own part into its own histogram, so no atomic operation decides
anything, and the histograms of earlier splits tell each program where its entries go in the output.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers

BINS = 256
PASSES = tl.constexpr(4)


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
def fill(out, first, k, step, FILL: tl.constexpr):
    """-1 behind the last slot of a row."""
    for start in range(first, k, step):
        at = start + tl.arange(0, FILL)
        tl.store(out + at, tl.full([FILL], -1, tl.int64).to(out.dtype.element_ty), mask=at < k)


@triton.jit
def kth_largest(key, k):
    """The largest uint32 that at least k of `key` reach; 0 is below all that count."""
    found, bit = tl.full((), 0, tl.uint32), tl.full((), 1 << 31, tl.uint32)
    for _ in range(32):
        enough = tl.sum((key >= (found | bit)).to(tl.int32), 0) >= k
        found = tl.where(enough, found | bit, found)
        bit = bit >> 1
    return found


@triton.jit
def choose_row(
    logits_ptr, logits_stride, lengths_ptr, table_ptr, table_stride, out_ptr, out_stride, columns, k,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, FILL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A whole row of at most BLOCK columns: its threshold, bit by bit, then its slots. Grid (rows,)."""
    after_producers(PDL)
    number = tl.program_id(0).to(tl.int64)
    row, out = logits_ptr + number * logits_stride, out_ptr + number * out_stride
    length = row_length(lengths_ptr, number, columns)
    fill(out, tl.minimum(length, k), k, FILL, FILL)
    zero = tl.full((), 0, tl.int32)
    threshold, ties = tl.full((), 0, tl.uint32), zero + k
    if length > k:
        entries = tl.arange(0, BLOCK)
        key = tl.where(entries < length, ordered_key(tl.load(row + entries, mask=entries < length, other=0.0)), 0)
        threshold = kth_largest(key, k)
        ties -= tl.sum((key > threshold).to(tl.int32), 0)
    table = table_ptr + number * table_stride
    PART: tl.constexpr = min(BLOCK, 1024)  # at a time: its running counts take registers
    write_part(row, table, out, zero, length, threshold, length <= k, zero, ties, zero, PART, PAGE)


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
