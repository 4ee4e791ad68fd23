"""Token choice: the best logit, or a draw from the top-k and nucleus by the Gumbel-max trick with Philox noise.

The top-k is "everything above a threshold key, and of the entries equal to it the first few", the threshold found four
bits at a time. The nucleus is never looked for: the best of all noisy tokens is drawn, and the weight in front of it
says whether the nucleus has it. If not, neither has it anyone behind that token, and the best of those in front is
drawn. What is accepted so is the best of the nucleus. A draw is accepted with probability top_p at least; those that
ROUNDS rounds did not settle are finished by one program. A token's weight is a 40-bit integer, so sums over any split
of the row are exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.sampling.thresholds import (
    STEP,
    best_logit,
    depth,
    id_of,
    in_nucleus,
    judged,
    part_of_row,
    ranked,
    settled,
    top_k_limit,
    value_of,
    weight,
)
from wellhead.ops.topk.kernels import ordered_key

PASSES = 8
ROUNDS = 3  # of 10,000 draws with top_p 0.9 a thousand want the second, two a fourth
LAST = tl.constexpr(2147483647)  # behind every id


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
def count_digits(
    logits_ptr, logits_stride, temperature_ptr, top_k_ptr, sums_in_ptr, sums_ptr, state_ptr, columns,
    PASS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many keys with the prefix so far have each value of digit PASS; sums int32 [rows, SPLITS, 16].

    Greedy rows, and rows without top-k, are skipped. Grid (SPLITS, rows).
    """
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    wanted = tl.load(top_k_ptr + row).to(tl.int64)
    if (not tl.load(temperature_ptr + row) > 0) | (wanted <= 0) | (wanted >= columns):
        return
    logits_ptr += row * logits_stride
    prefix = tl.full((), 0, tl.uint32)
    if PASS > 0:
        state_ptr += row * STEP
        prefix, wanted, _ = settled(sums_in_ptr, state_ptr, row, wanted, PASS, SPLITS)
        if split == 0:
            tl.store(state_ptr + PASS * 2, prefix.to(tl.int64))
            tl.store(state_ptr + PASS * 2 + 1, wanted)
    start, end = part_of_row(columns, BLOCK, SPLITS, split)
    bins, sums = tl.arange(0, 16), tl.zeros([16], tl.int32)
    for first in range(start, end, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        key = ordered_key(tl.load(logits_ptr + ids, mask=ids < end, other=0.0))
        live = ids < end
        if PASS > 0:
            live = live & ((key >> (32 - 4 * PASS)) == prefix)
        digit = ((key >> (28 - 4 * PASS)) & 15).to(tl.int32)
        sums += tl.sum(((digit[None, :] == bins[:, None]) & live[None, :]).to(tl.int32), 1)
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
def drawn_between(
    logits_ptr, start, end, best, temperature, seed, position, threshold, kept, skipped, key_limit, id_limit,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The best depth - log(exponential noise) of tokens start .. end - 1, ranked with its id: of those in front of
    (key_limit, id_limit) that are above the top-k's threshold or, after `skipped` in front, among the `kept` on it.
    """
    lane = tl.arange(0, BLOCK)
    drawn = ranked(tl.zeros([BLOCK], tl.uint32), lane)
    for first in range(start, end, BLOCK):
        ids = first + lane
        x = tl.load(logits_ptr + ids, mask=ids < end, other=0.0)
        key = ordered_key(x)
        tie = ((ids < end) & (key == threshold)).to(tl.int32)
        early = skipped + tl.cumsum(tie, 0) - tie < kept
        skipped += tl.sum(tie, 0)
        live = (ids < end) & ((key > threshold) | ((tie == 1) & early))
        live = live & ((key > key_limit) | ((key == key_limit) & (ids < id_limit)))
        score = depth(x, best, temperature) - tl.log(exponential(seed, position, ids))
        drawn = tl.maximum(drawn, ranked(tl.where(live, ordered_key(score), 0), ids))
    return tl.max(drawn, 0)


@triton.jit
def weights_between(logits_ptr, start, end, best, temperature, threshold, key, token, BLOCK: tl.constexpr):
    """Of tokens start .. end - 1 the weight of those in front of (key, token), and of all from the threshold on."""
    before, total = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
    for first in range(start, end, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + ids, mask=ids < end, other=0.0)
        own = ordered_key(x)
        amount = tl.where((ids < end) & (own >= threshold), weight(x, best, temperature), 0)
        total += amount
        before += tl.where((own > key) | ((own == key) & (ids < token)), amount, 0)
    return tl.sum(before, 0), tl.sum(total, 0)


@triton.jit
def draw_part(
    logits_ptr, logits_stride, best_ptr, temperature_ptr, top_k_ptr, top_p_ptr, seed_ptr, position_ptr,
    count_sums_ptr, state_ptr, drawn_before_ptr, weights_ptr, drawn_ptr, columns,
    TOP_K: tl.constexpr, FIRST: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A round's draw of each part, ranked with its id; the round's before, where the nucleus has that one.

    Grid (SPLITS, rows); greedy rows are skipped.
    """
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    if not temperature > 0:
        return
    logits_ptr += row * logits_stride
    drawn_ptr += row * SPLITS + split
    key_limit, id_limit = tl.full((), 0, tl.uint32), tl.full((), LAST, tl.int32)
    if not FIRST:
        top_p = tl.load(top_p_ptr + row)
        rank, inside = judged(drawn_before_ptr, weights_ptr, top_p, row, SPLITS)
        if (top_p >= 1) | (inside == 1):
            tl.store(drawn_ptr, tl.load(drawn_before_ptr + row * SPLITS + split))
            return
        id_limit = id_of(rank)
        key_limit = ordered_key(tl.load(logits_ptr + id_limit))
    best = best_logit(best_ptr, logits_ptr, row, SPLITS)
    threshold, kept, ties = top_k_limit(count_sums_ptr, state_ptr, top_k_ptr, row, columns, SPLITS, TOP_K)
    skipped = tl.sum(tl.where(tl.arange(0, SPLITS) < split, ties, 0), 0)
    start, end = part_of_row(columns, BLOCK, SPLITS, split)
    drawn = drawn_between(
        logits_ptr, start, end, best, temperature, tl.load(seed_ptr + row), tl.load(position_ptr + row), threshold,
        kept, skipped, key_limit, id_limit, BLOCK,
    )  # fmt: skip
    tl.store(drawn_ptr, drawn)


@triton.jit
def weigh_part(
    logits_ptr, logits_stride, best_ptr, temperature_ptr, top_k_ptr, top_p_ptr, count_sums_ptr, state_ptr, drawn_ptr,
    drawn_before_ptr, weights_before_ptr, weights_ptr, columns,
    TOP_K: tl.constexpr, FIRST: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The weight in each part in front of a round's draw, and of all; those of the round before where that is settled.

    Grid (SPLITS, rows); greedy rows and rows without a nucleus are skipped.
    """
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature, top_p = tl.load(temperature_ptr + row), tl.load(top_p_ptr + row)
    if (not temperature > 0) | (top_p >= 1):
        return
    logits_ptr += row * logits_stride
    here = (row * SPLITS + split) * 2
    if not FIRST:
        _, inside = judged(drawn_before_ptr, weights_before_ptr, top_p, row, SPLITS)
        if inside == 1:
            tl.store(weights_ptr + here, tl.load(weights_before_ptr + here))
            tl.store(weights_ptr + here + 1, tl.load(weights_before_ptr + here + 1))
            return
    best = best_logit(best_ptr, logits_ptr, row, SPLITS)
    threshold, kept, ties = top_k_limit(count_sums_ptr, state_ptr, top_k_ptr, row, columns, SPLITS, TOP_K)
    token = id_of(tl.max(tl.load(drawn_ptr + row * SPLITS + tl.arange(0, SPLITS)), 0))
    start, end = part_of_row(columns, BLOCK, SPLITS, split)
    key = ordered_key(tl.load(logits_ptr + token))
    before, total = weights_between(logits_ptr, start, end, best, temperature, threshold, key, token, BLOCK)
    if TOP_K:
        if split == 0:  # entries on the threshold that the top-k leaves out
            total -= (tl.sum(ties, 0) - kept) * weight(value_of(threshold), best, temperature)
    tl.store(weights_ptr + here, before)
    tl.store(weights_ptr + here + 1, total)


@triton.jit
def pick_token(
    logits_ptr, logits_stride, best_ptr, temperature_ptr, top_k_ptr, top_p_ptr, seed_ptr, position_ptr,
    count_sums_ptr, state_ptr, drawn_ptr, weights_ptr, out_ptr, columns,
    SAMPLED: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The id of the best part: of the logits in greedy rows, of the draw in the others, which goes on until the nucleus
    has it. Grid (rows,).
    """
    row = tl.program_id(0).to(tl.int64)
    at = row * SPLITS + tl.arange(0, SPLITS)
    rank = tl.max(tl.load(best_ptr + at), 0)
    if SAMPLED:
        temperature = tl.load(temperature_ptr + row)
        if temperature > 0:
            best = tl.load(logits_ptr + row * logits_stride + id_of(rank))
            rank = tl.max(tl.load(drawn_ptr + at), 0)
            if TOP_P:
                top_p = tl.load(top_p_ptr + row)
                if top_p < 1:
                    logits_ptr += row * logits_stride
                    total = tl.sum(tl.load(weights_ptr + at * 2 + 1), 0)
                    inside = in_nucleus(tl.sum(tl.load(weights_ptr + at * 2), 0), total, top_p)
                    threshold, kept, _ = top_k_limit(
                        count_sums_ptr, state_ptr, top_k_ptr, row, columns, SPLITS, TOP_K
                    )
                    seed, position = tl.load(seed_ptr + row), tl.load(position_ptr + row)
                    nobody = tl.full((), 0, tl.int32)
                    while inside == 0:
                        limit = id_of(rank)
                        rank = drawn_between(
                            logits_ptr, 0, columns, best, temperature, seed, position, threshold, kept,
                            nobody, ordered_key(tl.load(logits_ptr + limit)), limit, BLOCK,
                        )  # fmt: skip
                        token = id_of(rank)
                        key = ordered_key(tl.load(logits_ptr + token))
                        before, _total = weights_between(
                            logits_ptr, 0, columns, best, temperature, threshold, key, token, BLOCK
                        )
                        inside = in_nucleus(before, total, top_p)
    tl.store(out_ptr + row, id_of(rank).to(out_ptr.dtype.element_ty))
