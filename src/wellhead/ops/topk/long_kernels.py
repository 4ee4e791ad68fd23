"""Exact top-k of long rows in three launches.

1. Each of S programs takes every S-th chunk of a row and finds a key that at least ceil(k / S) of its entries reach.
   The smallest of the S keys is a bound that at least k entries of the row reach, normally 1.2 to 1.7 times k.
2. Each of S programs lists the entries of its S-th of the row that reach the bound.
3. One program chooses among the listed as `choose_row` does, or, where they are more than it holds, block by block: of
   the lists, or of the row where a list has no room. Slower, the same result.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.topk.kernels import (
    digits,
    fill,
    keys_at,
    narrow,
    ordered_key,
    pages_of,
    range_of_kth,
    row_length,
    whole_range,
    write_slots,
)

CHUNK = tl.constexpr(32)  # entries, 128 bytes: logits near each other are alike, so they are dealt out in turn


@triton.jit
def load_bound(bounds_ptr, row, SPLITS: tl.constexpr):
    bounds = tl.load(bounds_ptr + row * SPLITS + tl.arange(0, SPLITS))
    return tl.min(bounds.to(tl.uint32, bitcast=True), 0)


@triton.jit
def bound_share(
    logits_ptr, logits_stride, lengths_ptr, bounds_ptr, columns, k,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A key that ceil(k / SPLITS) entries of a share reach, and few more; the lowest if the share has not so many.

    bounds int32 [rows, SPLITS]. Of a share of more than BLOCK entries the first are looked at: the bound holds, lower.
    Rows of at most k entries are skipped. Grid (SPLITS, rows).
    """
    after_producers(PDL)
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    entries = (lane // CHUNK) * (CHUNK * SPLITS) + split * CHUNK + lane % CHUNK
    logits = tl.load(logits_ptr + row * logits_stride + entries, mask=entries < columns, other=0.0)
    length = row_length(lengths_ptr, row, columns)
    if length <= k:
        return
    key = tl.where(entries < length, ordered_key(logits), 0)
    rest = tl.minimum(tl.maximum(length % (CHUNK * SPLITS) - split * CHUNK, 0), CHUNK)
    share = tl.minimum(length // (CHUNK * SPLITS) * CHUNK + rest, BLOCK)
    wanted = tl.cdiv(k, SPLITS)
    found, low = whole_range()
    found, low, _ = range_of_kth(key, wanted, wanted + wanted // 8, found, low, share)
    tl.store(bounds_ptr + row * SPLITS + split, found.to(tl.int32, bitcast=True))


@triton.jit
def list_part(
    logits_ptr, logits_stride, lengths_ptr, bounds_ptr, counts_ptr, listed_ptr, columns, k, region,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The entries of one part of a row that reach the bound, ascending: how many, and the first `region` of them.

    counts int32 [rows, SPLITS], listed int32 [rows, SPLITS, region]. Grid (SPLITS, rows).
    """
    after_producers(PDL)
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = row_length(lengths_ptr, row, columns)
    bound = load_bound(bounds_ptr, row, SPLITS)
    if length <= k:
        return
    listed_ptr += (row * SPLITS + split) * region
    part = tl.cdiv(tl.cdiv(length, CHUNK), SPLITS) * CHUNK  # as even as chunks come, so that short rows are shared too
    start = split * part
    end = tl.minimum(start + part, length)
    count = tl.full((), 0, tl.int32)
    for first in range(start, end, BLOCK):
        entries = first + tl.arange(0, BLOCK)
        listed = keys_at(logits_ptr + row * logits_stride, entries, end, columns) >= bound
        one = listed.to(tl.int32)
        at = count + tl.cumsum(one, 0) - one
        tl.store(listed_ptr + at, entries, mask=listed & (at < region))
        count += tl.sum(one, 0)
    tl.store(counts_ptr + row * SPLITS + split, count)


@triton.jit
def block_of(
    row, listed, ends, region, first, end, SPLITS: tl.constexpr, BLOCK: tl.constexpr, LISTED: tl.constexpr
):  # fmt: skip
    """(key, entries, live) at places first .. first + BLOCK before `end` of what is listed, or of the row itself."""
    place = first + tl.arange(0, BLOCK)
    live, entries = place < end, place
    if LISTED:
        part, before = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)  # whose list it is in, what is ahead
        for half in tl.static_range(1, 6):  # the last part that begins at or before this place; SPLITS is at most 32
            if SPLITS >> half > 0:
                begin = tl.gather(ends, part + (SPLITS >> half) - 1, 0)
                part = tl.where(begin <= place, part + (SPLITS >> half), part)
                before = tl.where(begin <= place, begin, before)
        entries = tl.load(listed + part * region + place - before, mask=live, other=0)
    return tl.where(live, ordered_key(tl.load(row + entries, mask=live, other=0.0)), 0), entries, live


@triton.jit
def choose_in_blocks(
    row, table, out, listed, ends, region, found, low, end, k,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The k best of what is listed, or of the row, every turn from memory."""
    above, reached = tl.full((), 0, tl.int32), end
    while (reached > k) & (low > 0):
        key, _, _ = block_of(row, listed, ends, region, 0, end, SPLITS, BLOCK, LISTED)
        histogram, shift = digits(key, found, low)
        for first in range(BLOCK, end, BLOCK):
            key, _, _ = block_of(row, listed, ends, region, first, end, SPLITS, BLOCK, LISTED)
            histogram += digits(key, found, low)[0]
        found, low, above, reached = narrow(histogram, shift, found, low, above, k)
    ties_wanted, above, ties = k - above, tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for first in range(0, end, BLOCK):
        key, entries, live = block_of(row, listed, ends, region, first, end, SPLITS, BLOCK, LISTED)
        pages = pages_of(table, entries, live, PAGE)
        above, ties = write_slots(key, entries, pages, found, low, ties_wanted, above, ties, out, PAGE)


@triton.jit
def choose_long(
    logits_ptr, logits_stride, lengths_ptr, bounds_ptr, counts_ptr, listed_ptr, table_ptr, table_stride,
    out_ptr, out_stride, columns, k, region,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, FILL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A long row's slots: among up to BLOCK listed entries, BLOCK at a time among more, or in the row. Grid (rows,)."""
    after_producers(PDL)
    number = tl.program_id(0).to(tl.int64)
    row, table = logits_ptr + number * logits_stride, table_ptr + number * table_stride
    out = out_ptr + number * out_stride
    counts = tl.load(counts_ptr + number * SPLITS + tl.arange(0, SPLITS))
    bound = load_bound(bounds_ptr, number, SPLITS)
    length = row_length(lengths_ptr, number, columns)
    fill(out, tl.minimum(length, k), k, FILL)
    listed = listed_ptr + number * SPLITS * region
    ends, total = tl.cumsum(counts, 0), tl.sum(counts, 0)
    found, low = whole_range()
    if (length <= k) | (tl.max(counts, 0) > region):
        some = tl.minimum(length, k)
        choose_in_blocks(row, table, out, listed, ends, region, found, low, length, some, SPLITS, BLOCK, PAGE, False)
    elif total > BLOCK:
        low -= bound - found
        choose_in_blocks(row, table, out, listed, ends, region, bound, low, total, k, SPLITS, BLOCK, PAGE, True)
    else:
        key, entries, live = block_of(row, listed, ends, region, 0, total, SPLITS, BLOCK, True)
        pages = pages_of(table, entries, live, PAGE)
        found, low, above = range_of_kth(key, k, k, bound, tl.max(key, 0) - bound, total)
        write_slots(key, entries, pages, found, low, k - above, 0, 0, out, PAGE)
