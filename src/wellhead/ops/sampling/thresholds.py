"""Ranks of logits, their weights, where the top-k ends, and who is in the nucleus."""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.topk.kernels import digit_of, ordered_key

STEP = tl.constexpr(18)  # int64 of a row: (prefix, wanted) after each of the counting passes


@triton.jit
def part_of_row(length, BLOCK: tl.constexpr, SPLITS: tl.constexpr, split):
    """[start, end) of a split: whole blocks, as even as they come, so that short rows are shared too."""
    blocks = tl.cdiv(tl.cdiv(length, BLOCK), SPLITS)
    start = tl.minimum(split * blocks * BLOCK, length)
    return start, tl.minimum(start + blocks * BLOCK, length)


@triton.jit
def ranked(key, ids):
    """int64 with the order of key, among equal ones of lower id."""
    return ((key.to(tl.int64) - 2147483648) << 32) | (2147483647 - ids).to(tl.int64)


@triton.jit
def id_of(rank):
    return (2147483647 - (rank & 4294967295)).to(tl.int32)


@triton.jit
def value_of(key):
    """The fp32 number of an ordered key."""
    bits = tl.where(key >= 2147483648, key ^ 2147483648, key ^ 4294967295)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def depth(x, best, temperature):
    """(x - best) / temperature: 0 for the best whatever it is, -inf where undefined."""
    below = (x - best) / temperature
    below = tl.where(below == below, below, float("-inf"))
    return tl.where(ordered_key(x) == ordered_key(best), 0.0, below)


@triton.jit
def weight(x, best, temperature):
    """floor(2^40 exp(depth)) as int64."""
    return (tl.exp(depth(x, best, temperature)) * 1099511627776.0).to(tl.int64)


@triton.jit
def best_logit(best_ptr, logits_ptr, row, SPLITS: tl.constexpr):
    rank = tl.max(tl.load(best_ptr + row * SPLITS + tl.arange(0, SPLITS)), 0)
    return tl.load(logits_ptr + id_of(rank))


@triton.jit
def settled(sums_ptr, state_ptr, row, first_wanted, PASS: tl.constexpr, SPLITS: tl.constexpr):
    """What counting pass PASS - 1 decided: (key prefix, entries wanted of it, entries of it in each split)."""
    bins, splits = tl.arange(0, 16), tl.arange(0, SPLITS)
    sums = tl.load(sums_ptr + (row * SPLITS + splits[:, None]) * 16 + bins[None, :])
    prefix = tl.full((), 0, tl.uint32)
    wanted = first_wanted
    if PASS > 1:
        prefix = tl.load(state_ptr + (PASS - 1) * 2).to(tl.uint32)
        wanted = tl.load(state_ptr + (PASS - 1) * 2 + 1)
    digit, above = digit_of(tl.sum(sums, 0), wanted)
    each = tl.sum(tl.where(bins[None, :] == digit, sums, 0), 1)
    return (prefix << 4) | digit.to(tl.uint32), wanted - above, each


@triton.jit
def top_k_limit(sums_ptr, state_ptr, top_k_ptr, row, columns, SPLITS: tl.constexpr, TOP_K: tl.constexpr):
    """(threshold key, entries wanted of it, entries there in each split) of the top-k; key 0 where all are in."""
    threshold, wanted = tl.full((), 0, tl.uint32), tl.full((), 0, tl.int64)
    each = tl.zeros([SPLITS], tl.int32)
    if TOP_K:
        k = tl.load(top_k_ptr + row).to(tl.int64)
        if (k > 0) & (k < columns):
            threshold, wanted, each = settled(sums_ptr, state_ptr + row * STEP, row, k, 8, SPLITS)
    return threshold, wanted, each


@triton.jit
def in_nucleus(before, total, top_p):
    """Whether a token with the weight `before` in front of it is among those that first reach ceil(top_p * total)."""
    wanted = tl.maximum(tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64), 1)
    return (before < wanted).to(tl.int32)


@triton.jit
def judged(drawn_ptr, weights_ptr, top_p, row, SPLITS: tl.constexpr):
    """A round's draw, as a rank, and 1 if the nucleus has it; weights int64 [rows, SPLITS, 2], in front and in all."""
    at = row * SPLITS + tl.arange(0, SPLITS)
    rank = tl.max(tl.load(drawn_ptr + at), 0)
    before, total = tl.sum(tl.load(weights_ptr + at * 2), 0), tl.sum(tl.load(weights_ptr + at * 2 + 1), 0)
    return rank, in_nucleus(before, total, top_p)
