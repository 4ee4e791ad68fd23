"""The sum of `addends.Addends`, for whoever reads it next (`added_up`) or in a launch of its own."""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers


@triton.jit
def added_up(rows, ids, last, token, valid, channel, inside, D, FIRST, COUNT, PLACES: tl.constexpr):
    """bf16 [R, C] of y: token i64 [R] where valid [R], at channel [C] where inside [C]."""
    there = valid[:, None] & inside[None, :]
    total = tl.zeros(there.shape, dtype=tl.float32)
    for place in tl.static_range(PLACES):
        one = tl.load(ids + token * PLACES + place, mask=valid, other=-1)
        mine = (one >= FIRST) & (one < FIRST + COUNT)
        at = (token * PLACES + place)[:, None] * D + channel[None, :]
        total += tl.load(rows + at, mask=there & mine[:, None], other=0.0).to(tl.float32)
    total += tl.load(last + token[:, None] * D + channel[None, :], mask=there, other=0.0).to(tl.float32)
    return total.to(tl.bfloat16)


@triton.jit
def add_up_kernel(
    rows, ids, last, out, D, FIRST, COUNT, PLACES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One program per token and BLOCK channels."""
    token = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, valid = channel < D, token >= 0
    after_producers(PDL)
    y = added_up(rows, ids, last, token, valid, channel, inside, D, FIRST, COUNT, PLACES)
    tl.store(out + token[:, None] * D + channel[None, :], y, mask=inside[None, :])
