"""Token choice: the best logit, or a draw from the top-k and nucleus by the Gumbel-max trick with Philox noise.

Both restrictions are "everything above a threshold key, and of the entries equal to it the first few", found four
bits of the key at a time. A token's weight is a 40-bit integer, so sums over any split of the row are exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.sampling.thresholds import (
    STEP,
    best_logit,
    depth,
    id_of,
    nucleus_mass,
    part_of_row,
    ranked,
    settled,
    top_k_limit,
    value_of,
    weight,
)
from wellhead.ops.topk.kernels import ordered_key

PASSES = 8


@triton.jit
def best_of_part(logits_ptr, logits_stride, best_ptr, columns, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """The best logit of each part, ranked with its id. Grid (SPLITS, rows)."""
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, end = part_of_row(columns, BLOCK, SPLITS, split)
    lane = tl.arange(0, BLOCK)
    best = ranked(tl.zeros([BLOCK], tl.uint32), lane)
    for first in range(start, end, BLOCK):
        ids = first + lane
        x = tl.load(logits_ptr + row * logits_stride + ids, mask=ids < end, other=0.0)
        best = tl.maximum(best, ranked(tl.where(ids < end, ordered_key(x), 0), ids))
    tl.store(best_ptr + row * SPLITS + split, tl.max(best, 0))


@triton.jit
def sum_digits(
    logits_ptr, logits_stride, best_ptr, temperature_ptr, top_k_ptr, top_p_ptr, count_sums_ptr, first_sums_ptr,
    sums_in_ptr, sums_ptr, state_ptr, columns,
    MASS: tl.constexpr, TOP_K: tl.constexpr, PASS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How much each value of digit PASS holds among the keys with the prefix so far: entries, or (MASS) weight.

    sums int64 [rows, SPLITS, 16]; first_sums are those of pass 0, count_sums the last ones of the phase that counted.
    Greedy rows, and rows without this restriction, are skipped. Grid (SPLITS, rows).
    """
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    if not temperature > 0:
        return
    logits_ptr += row * logits_stride
    best = best_logit(best_ptr, logits_ptr, row, SPLITS)
    lowest = tl.full((), 0, tl.uint32)
    if MASS:
        top_p = tl.load(top_p_ptr + row)
        if top_p >= 1:
            return
        lowest, kept, ties = top_k_limit(count_sums_ptr, state_ptr, top_k_ptr, row, columns, SPLITS, TOP_K)
        wanted = (tl.sum(ties, 0) - kept) * weight(value_of(lowest), best, temperature)
        if PASS > 0:
            wanted = nucleus_mass(first_sums_ptr, row, top_p, wanted, SPLITS)
    else:
        wanted = tl.load(top_k_ptr + row).to(tl.int64)
        if (wanted <= 0) | (wanted >= columns):
            return
    prefix = tl.full((), 0, tl.uint32)
    if PASS > 0:
        state_ptr += (row * 2 + MASS) * STEP
        prefix, wanted, _ = settled(sums_in_ptr, state_ptr, row, wanted, PASS, SPLITS)
        if split == 0:
            tl.store(state_ptr + PASS * 2, prefix.to(tl.int64))
            tl.store(state_ptr + PASS * 2 + 1, wanted)
    start, end = part_of_row(columns, BLOCK, SPLITS, split)
    bins, sums = tl.arange(0, 16), tl.zeros([16], tl.int64)
    for first in range(start, end, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + ids, mask=ids < end, other=0.0)
        key = ordered_key(x)
        live = (ids < end) & (key >= lowest)
        if PASS > 0:
            live = live & ((key >> (32 - 4 * PASS)) == prefix)
        amount = weight(x, best, temperature) if MASS else tl.full([BLOCK], 1, tl.int64)
        digit = ((key >> (28 - 4 * PASS)) & 15).to(tl.int32)
        sums += tl.sum(tl.where((digit[None, :] == bins[:, None]) & live[None, :], amount[None, :], 0), 1)
    tl.store(sums_ptr + (row * SPLITS + split) * 16 + bins, sums)


@triton.jit
def exponential(seed, position, ids):
    """Exponential noise of one token at one position, from the first word of Philox4x32-10: in (0, 16.7], or infinite
    once in 2^25, where u rounds to 1; such a token is chosen last.
    """
    low, high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, ids, low, high, tl.full((), 0, tl.uint32))
    u = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return tl.where(u < 0.0009765625, u * (1 + u * (0.5 + u * (1 / 3))), -tl.log(1 - u))


@triton.jit
def draw_part(
    logits_ptr, logits_stride, best_ptr, temperature_ptr, top_k_ptr, top_p_ptr, seed_ptr, position_ptr,
    count_sums_ptr, first_sums_ptr, mass_sums_ptr, state_ptr, drawn_ptr, columns,
    TOP_K: tl.constexpr, TOP_P: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The best of depth - log(exponential noise) over the kept tokens of each part, ranked with its id.

    Grid (SPLITS, rows); greedy rows are skipped.
    """
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    if not temperature > 0:
        return
    logits_ptr += row * logits_stride
    best = best_logit(best_ptr, logits_ptr, row, SPLITS)
    threshold, wanted, ties = top_k_limit(count_sums_ptr, state_ptr, top_k_ptr, row, columns, SPLITS, TOP_K)
    each = tl.full((), 1, tl.int64)  # what one entry at the threshold adds to the ties before the next
    if TOP_P:
        top_p = tl.load(top_p_ptr + row)
        if top_p < 1:
            lowest, kept = threshold, wanted
            edge = weight(value_of(lowest), best, temperature)
            mass = nucleus_mass(first_sums_ptr, row, top_p, (tl.sum(ties, 0) - kept) * edge, SPLITS)
            state_ptr += (row * 2 + 1) * STEP
            threshold, wanted, ties = settled(mass_sums_ptr, state_ptr, row, mass, 8, SPLITS)
            each = weight(value_of(threshold), best, temperature)
            if threshold == lowest:
                wanted = tl.minimum(wanted, kept * each)
    before = tl.sum(tl.where(tl.arange(0, SPLITS) < split, ties, 0), 0)

    seed, position = tl.load(seed_ptr + row), tl.load(position_ptr + row)
    start, end = part_of_row(columns, BLOCK, SPLITS, split)
    lane = tl.arange(0, BLOCK)
    drawn = ranked(tl.zeros([BLOCK], tl.uint32), lane)
    for first in range(start, end, BLOCK):
        ids = first + lane
        x = tl.load(logits_ptr + ids, mask=ids < end, other=0.0)
        key = ordered_key(x)
        tie = ((ids < end) & (key == threshold)).to(tl.int32)
        early = before + (tl.cumsum(tie, 0) - tie) * each < wanted
        before += tl.sum(tie, 0) * each
        live = (ids < end) & ((key > threshold) | ((tie == 1) & early))
        score = depth(x, best, temperature) - tl.log(exponential(seed, position, ids))
        drawn = tl.maximum(drawn, ranked(tl.where(live, ordered_key(score), 0), ids))
    tl.store(drawn_ptr + row * SPLITS + split, tl.max(drawn, 0))


@triton.jit
def pick_token(best_ptr, drawn_ptr, temperature_ptr, out_ptr, SAMPLED: tl.constexpr, SPLITS: tl.constexpr):
    """The id of the best part: of the logits in greedy rows, of the draw in the others. Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    at = row * SPLITS + tl.arange(0, SPLITS)
    rank = tl.load(best_ptr + at)
    if SAMPLED:
        rank = tl.where(tl.load(temperature_ptr + row) > 0, tl.load(drawn_ptr + at), rank)
    tl.store(out_ptr + row, id_of(tl.max(rank, 0)).to(out_ptr.dtype.element_ty))
