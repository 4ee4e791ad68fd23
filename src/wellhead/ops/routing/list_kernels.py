"""Routing: the lists of tokens that each expert gets."""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers


@triton.jit(do_not_specialize=["numel"])
def list_tokens(
    ids_ptr, slots_ptr, counts_ptr, offsets_ptr, block_expert_ptr, numel, capacity, first_expert,
    E: tl.constexpr, E_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The positions in ids of one expert, in order, at its place among the experts' runs. Grid (E,).

    Every program counts all experts for itself, so none waits for another and no atomic operation decides an order.
    """
    after_producers(PDL)
    e = tl.program_id(0)
    expert, lane = tl.arange(0, E_PAD), tl.arange(0, CHUNK)
    counts = tl.zeros([E_PAD], tl.int32)
    for first in range(0, numel, CHUNK):
        ids = tl.load(ids_ptr + first + lane, mask=first + lane < numel, other=-1).to(tl.int32) - first_expert
        counts += tl.histogram(ids, E_PAD, mask=(ids >= 0) & (ids < E))
    padded = tl.cdiv(counts, BLOCK) * BLOCK
    own = tl.sum(tl.where(expert == e, counts, 0), 0)
    start = tl.sum(tl.where(expert < e, padded, 0), 0)
    end = start + tl.cdiv(own, BLOCK) * BLOCK
    total = tl.sum(padded, 0)
    tl.store(counts_ptr + e, own)
    tl.store(offsets_ptr + e, start)
    if e == E - 1:
        tl.store(offsets_ptr + E, total)

    taken = start
    for first in range(0, numel, CHUNK):
        ids = tl.load(ids_ptr + first + lane, mask=first + lane < numel, other=-1).to(tl.int32) - first_expert
        mine = ((ids == e) & (first + lane < numel)).to(tl.int32)
        tl.store(slots_ptr + taken + tl.cumsum(mine, 0) - mine, first + lane, mask=mine == 1)
        taken += tl.sum(mine, 0)
    pad = tl.arange(0, BLOCK)
    tl.store(slots_ptr + taken + pad, tl.full([BLOCK], -1, tl.int32), mask=taken + pad < end)
    for at in range(start // BLOCK, end // BLOCK, BLOCK):
        tl.store(block_expert_ptr + at + pad, tl.zeros([BLOCK], tl.int32) + e, mask=at + pad < end // BLOCK)
    for at in range(total + e * CHUNK, capacity, E * CHUNK):
        tl.store(slots_ptr + at + lane, tl.full([CHUNK], -1, tl.int32), mask=at + lane < capacity)
    for at in range(total // BLOCK + e * CHUNK, capacity // BLOCK, E * CHUNK):
        nobody = tl.full([CHUNK], -1, tl.int32)
        tl.store(block_expert_ptr + at + lane, nobody, mask=at + lane < capacity // BLOCK)
