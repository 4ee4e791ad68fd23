"""A step's addresses from page tables: arithmetic of a few integers per token, in one launch for the window and one for
each ratio of compressed entries.
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.rope.kernels import cos_sin


@triton.jit
def _slots(table, entries, real, PAGES, SIZE: tl.constexpr):
    """int64 slots of entries through a table of PAGES pages, SIZE entries each; -1 for a negative entry or page."""
    place = tl.maximum(entries, 0)
    known = (entries >= 0) & (place // SIZE < PAGES) & real
    page = tl.load(table + place // SIZE, mask=known, other=-1).to(tl.int64)
    return tl.where(page >= 0, page * SIZE + place % SIZE, -1)


@triton.jit(do_not_specialize=["PAGES"])
def token_kernel(
    positions, rows, owners, page_table, window_table, write_slots, window_slots, tables,
    PAGES, WINDOW: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Slots of a token's own record and of the WINDOW records up to it, and its request's page table.

    positions, owners int64 [T], rows i32 [T]; tables i32 [R, PAGES]. Grid (T, 1 + blocks of BLOCK pages).
    """
    after_producers(PDL)
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    if tl.program_id(1) == 0:
        real = tl.load(owners + token) >= 0
        back = tl.arange(0, WINDOW)
        entries = tl.load(positions + token) - (WINDOW - 1) + back
        slots = _slots(window_table + row * PAGES, entries, real, PAGES, PAGE)
        tl.store(window_slots + token * WINDOW + back, slots)
        tl.store(write_slots + token + tl.zeros_like(back), slots, mask=back == WINDOW - 1)
    else:
        page = (tl.program_id(1) - 1) * BLOCK + tl.arange(0, BLOCK)
        inside = page < PAGES
        tl.store(tables + token * PAGES + page, tl.load(page_table + row * PAGES + page, mask=inside), mask=inside)


@triton.jit(do_not_specialize=["PAGES", "COUNT", "WIDTH", "TOKENS"])
def ratio_kernel(
    positions, rows, owners, page_table, freqs, ends, visible, chosen, entry_slots, cos, sin, slots,
    TOKENS, COUNT, PAGES, WIDTH, MOST,
    RATIO: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What a token sees of the entries of one ratio, and where an entry that ends in this step goes.

    Program (i, 0): visible i32 [T] of token i and chosen, at most MOST of them; the slot int64 of entry i of COUNT,
    which ends at token ends[i] (token i without ends), and the rotation fp32 [COUNT, 32] at its first position.
    Program (i, j): slots int64 [T, WIDTH] of the j-th BLOCK of the entries that token i sees.
    """
    after_producers(PDL)
    index = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:
        if index < COUNT:
            token = index
            if ends is not None:
                token = tl.load(ends + index).to(tl.int64)
            there = token >= 0
            token = tl.maximum(token, 0)
            position = tl.load(positions + token)
            there = there & (tl.load(owners + token) >= 0) & ((position + 1) % RATIO == 0)
            lane, row = tl.arange(0, 32), tl.load(rows + token).to(tl.int64)
            entry = position // RATIO + tl.zeros_like(lane)
            slot = _slots(page_table + row * PAGES, entry, there, PAGES, SIZE)
            tl.store(entry_slots + index + tl.zeros_like(lane), slot, mask=lane == 0)
            first = tl.where(there, position // RATIO * RATIO, 0).to(tl.float32)
            c, s = cos_sin(first * tl.load(freqs + lane))
            tl.store(cos + index * 32 + lane, c)
            tl.store(sin + index * 32 + lane, s)
        if index < TOKENS:
            seen = tl.where(tl.load(owners + index) >= 0, (tl.load(positions + index) + 1) // RATIO, 0).to(tl.int32)
            tl.store(visible + index, seen)
            tl.store(chosen + index, tl.minimum(seen, MOST))
    elif index < TOKENS:
        entry = (tl.program_id(1) - 1) * BLOCK + tl.arange(0, BLOCK)
        real = tl.load(owners + index) >= 0
        seen = (tl.load(positions + index) + 1) // RATIO
        row = tl.load(rows + index).to(tl.int64)
        found = _slots(page_table + row * PAGES, tl.where(entry < seen, entry, -1), real, PAGES, SIZE)
        tl.store(slots + index * WIDTH + entry, found, mask=entry < WIDTH)
