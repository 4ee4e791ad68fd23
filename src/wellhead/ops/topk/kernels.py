"""Exact top-k of short rows in one launch, and what it shares with long ones (`long_kernels`).

Keys are fp32 as uint32 of the same order. A program keeps its keys in registers and narrows the range that holds the
k-th largest 5 bits a turn, by a histogram of 32 bins, until that range holds no entry that would be left out: after
three to five turns for random rows, seven at most. One running count then tells every entry its place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers

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
def fill(out, first, k, FILL: tl.constexpr):
    """-1 behind the last slot of a row."""
    for start in range(first, k, FILL):
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
    fill(out, wanted, k, FILL)
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
