"""Queries and key-value records of a step in one launch: norm, rotation, and the record's bytes at its slot.

Program column 0 of a token writes its record, the others BH query heads each. A slot is page * PAGE + offset; its
bytes lie as `formats.kv_record` says.
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers, ask
from wellhead.ops.device_formats import round_groups
from wellhead.ops.rope.kernels import ROTATED, angles, turn

DIM = tl.constexpr(512)
NOPE = tl.constexpr(448)  # dims without a position in them


@triton.jit
def _norm_and_turn(x, weight, place, inside, eps, cos, sin, ROWS: tl.constexpr):
    """(bf16 [ROWS, 512] normed, not turned; bf16 [ROWS, 64] its last 64 turned) of the rows of x at `place`.

    The norm is rounded to bf16 before the turn. Every load comes before the sum that every store waits for.
    """
    column, last = tl.arange(0, DIM)[None, :], NOPE + tl.arange(0, ROTATED)[None, :]
    row = tl.load(x + place + column, mask=inside, other=0.0).to(tl.float32)
    tail = tl.load(x + place + last, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(row * row, axis=1) / DIM + eps)[:, None]
    row, tail = row * factor, tail * factor
    if weight is not None:
        row, tail = row * tl.load(weight + column).to(tl.float32), tail * tl.load(weight + last).to(tl.float32)
    turned = turn(tail.to(tl.bfloat16).to(tl.float32), cos, sin, ROWS)
    return row.to(tl.bfloat16), turned.to(tl.bfloat16)


@triton.jit
def _write_record(cache, slot, row, tail, PAGE: tl.constexpr, STRIDE: tl.constexpr):
    """The 584 bytes of one record, bf16 [1, 512] but the last 64, which are `tail`; nothing if slot i64 [1, 1] < 0."""
    column, group, last = tl.arange(0, DIM)[None, :], tl.arange(0, 8)[None, :], tl.arange(0, ROTATED)[None, :]
    known = slot >= 0
    page, offset = tl.maximum(slot, 0) // PAGE * STRIDE, tl.maximum(slot, 0) % PAGE
    data, scales = cache + page + offset * 576, cache + page + PAGE * 576 + offset * 8
    codes, exponent = round_groups(row.to(tl.float32), 1, DIM, 64)
    tl.store(data + column, codes, mask=known & (column < NOPE))
    tl.store((data + NOPE).to(tl.pointer_type(tl.bfloat16)) + last, tail, mask=known & (last < ROTATED))
    tl.store(scales + group, tl.where(group < 7, exponent, 0).to(tl.uint8), mask=known & (group < 8))


@triton.jit(do_not_specialize=["HEADS"])
def kv_store_kernel(
    q, q_out, kv, kv_out, weight, cache, slots, positions, freqs, eps,
    HEADS, KV_STRIDE,
    PAGE: tl.constexpr, STRIDE: tl.constexpr, BH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """q bf16 [T, H, 512] -> q_out; kv bf16 rows, KV_STRIDE apart -> cache, and kv_out [T, 512] or None."""
    token = tl.program_id(0).to(tl.int64)
    column, last = tl.arange(0, DIM)[None, :], NOPE + tl.arange(0, ROTATED)[None, :]
    cos, sin = angles(positions, freqs, token)  # a step's inputs: older than the kernel in front
    ask(weight + tl.arange(0, 8) * 64)  # its lines
    after_producers(PDL)
    if tl.program_id(1) == 0:
        here = token + tl.zeros((1, 1), dtype=tl.int64)
        row, tail = _norm_and_turn(kv, weight, here * KV_STRIDE, here >= 0, eps, cos, sin, 1)
        _write_record(cache, tl.load(slots + here), row, tail, PAGE, STRIDE)
        if kv_out is not None:
            tl.store(kv_out + token * DIM + column, row, mask=column < NOPE)
            tl.store(kv_out + token * DIM + last, tail)
    else:
        head = (tl.program_id(1) - 1) * BH + tl.arange(0, BH)
        inside = (head < HEADS)[:, None]
        place = ((token * HEADS + head) * DIM)[:, None]
        heads, tails = _norm_and_turn(q, None, place, inside, eps, cos, sin, BH)
        tl.store(q_out + place + column, heads, mask=inside & (column < NOPE))
        tl.store(q_out + place + last, tails, mask=inside)
