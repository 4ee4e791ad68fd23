"""The compressor over chunks: the entries of all blocks that end in a batch, then the rows that the rings keep.

Two launches, because an entry pools rows of the ring that a later token of the same chunk replaces. Entries: one
program a finished block; its rows come from the projection from the chunk's first token on, from the ring before it.
Rings: of the tokens that share a row of a ring only the last one writes.
"""

import triton
import triton.language as tl

from wellhead.ops.compressor.kernels import normed_and_rotated, softmax_step, store_entry
from wellhead.ops.dependent_launch import after_producers


@triton.jit
def _pooled(
    projected, ape, ring, token, first, position,
    D: tl.constexpr, RATIO: tl.constexpr, OVERLAP: tl.constexpr, RING: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """fp32 [D] of the block that ends at `token`, whose chunk began at `first`; rows are (kv [W], score [W]).

    Scores of the ring hold their ape, those of the projection get it here. As in decode no maximum is -inf.
    """
    WIDTH: tl.constexpr = OVERLAP * D
    POOLED: tl.constexpr = OVERLAP * RATIO
    channel = tl.arange(0, D)[None, :]
    peak = tl.full((D,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((D,), dtype=tl.float32)
    acc = tl.zeros((D,), dtype=tl.float32)
    for at in range(0, POOLED, ROWS):
        row = at + tl.arange(0, ROWS)
        back = POOLED - 1 - row
        before = tl.maximum(position - back, 0)
        half = tl.where(row >= RATIO, WIDTH - D, 0)  # the block before gives half A, the block itself half B
        fresh, there = token - back >= first, (position >= back)[:, None]
        source = tl.where(fresh, projected + (token - back) * (2 * WIDTH), ring + before % RING * (2 * WIDTH))
        place = (source + half)[:, None] + channel
        bias = (ape + before % RATIO * WIDTH + half)[:, None] + channel
        value = tl.load(place, mask=there, other=0.0)
        score = tl.load(place + WIDTH, mask=there, other=float("-inf"))
        score += tl.load(bias, mask=there & fresh[:, None], other=0.0)
        peak, total, acc = softmax_step(peak, total, acc, value, score)
    return acc / total


@triton.jit
def entries_kernel(
    projected, ape, positions, state_slots, firsts, state, norm, ends, cos, sin, slots, out, eps, STRIDE,
    D: tl.constexpr, RATIO: tl.constexpr, OVERLAP: tl.constexpr, RING: tl.constexpr, ROWS: tl.constexpr,
    PAGE: tl.constexpr, KEYS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Entry e of the block that ends at token ends[e] (-1: none) to `out`, as the decode step's; state is only read.

    projected fp32 [T, 2W], positions, state_slots, firsts int [T], ends int [E], cos and sin fp32 [E, 32], slots int64
    [E]; PAGE, KEYS and `out` as there.
    """
    after_producers(PDL)
    entry = tl.program_id(0).to(tl.int64)
    token = tl.load(ends + entry).to(tl.int64)
    if token < 0:
        return
    request, position = tl.load(state_slots + token).to(tl.int64), tl.load(positions + token)
    if (request < 0) | ((position + 1) % RATIO != 0):
        return
    ring = state + request * (RING * 2 * OVERLAP * D)
    first = tl.load(firsts + token)
    pooled = _pooled(projected, ape, ring, token, first, position, D, RATIO, OVERLAP, RING, ROWS)
    made = normed_and_rotated(pooled, norm, eps, cos, sin, entry, D)
    store_entry(made, entry, slots, out, STRIDE, D, PAGE, KEYS)


@triton.jit(do_not_specialize=["TOKENS"])
def keep_kernel(
    projected, ape, positions, state_slots, state, TOKENS,
    WIDTH: tl.constexpr, RATIO: tl.constexpr, RING: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """state[state_slots[t], positions[t] mod RING] = (kv, gate + ape) of the last token of each row of each ring.

    A token has a successor in its row where the token RING later is of the same request.
    """
    after_producers(PDL)
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    request = tl.load(state_slots + token, mask=token < TOKENS, other=-1).to(tl.int64)
    later = tl.load(state_slots + token + RING, mask=token + RING < TOKENS, other=-1).to(tl.int64)
    kept = (request >= 0) & (later != request)
    position = tl.load(positions + token, mask=kept, other=0)
    column = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    value = tl.load((projected + token * (2 * WIDTH))[:, None] + column, mask=kept[:, None], other=0.0)
    if tl.program_id(1) * BC >= WIDTH:
        value += tl.load((ape + position % RATIO * WIDTH - WIDTH)[:, None] + column, mask=kept[:, None], other=0.0)
    row = state + (request * RING + position % RING) * (2 * WIDTH)
    tl.store(row[:, None] + column, value, mask=kept[:, None])
