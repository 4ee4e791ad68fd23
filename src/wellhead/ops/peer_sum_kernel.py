"""The kernel of sums over ranks through memory that all their cards can write.

Every rank pushes its part, with the number of the call beside each four bytes, into its place on every card, waits
until all parts of the call have come, and adds them in the order of the ranks in fp32. A part may be a sum itself
(`ops.addends`), taken here and rounded before it is pushed. Eight bytes are stored at once,
so a number that came says that its data came: no fence, no remote atomic (PCIe has none), nothing to reset. Places are
used in turn: who begins call c + 2 has all parts of c + 1, whose senders had ended call c.
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import INTERPRETED

_PUSH = tl.constexpr("{ .reg .pred p; setp.ne.u32 p, $3, 0; @p st.relaxed.sys.global.b64 [$1], $2; mov.u32 $0, 0; }")


@triton.jit
def _push(place, word, inside):
    """int64 words to places that other cards read, eight bytes at once."""
    if INTERPRETED:
        tl.store(place, word, mask=inside)
    else:
        tl.inline_asm_elementwise(
            _PUSH, "=r,l,l,r", [place.to(tl.int64), word, inside.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _pair(low, high):
    """Two fp32 as the bf16 halves of an int32."""
    low, high = low.to(tl.bfloat16).to(tl.uint16, bitcast=True), high.to(tl.bfloat16).to(tl.uint16, bitcast=True)
    return (low.to(tl.uint32) | (high.to(tl.uint32) << 16)).to(tl.int32, bitcast=True)


@triton.jit
def _halves(pair):
    """The two bf16 of an int32 in fp32."""
    pair = pair.to(tl.uint32, bitcast=True)
    return (pair << 16).to(tl.float32, bitcast=True), (pair & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _added_up(rows, ids, last, at, inside, EXPERT, COUNT, WIDTH: tl.constexpr, ADDENDS: tl.constexpr):
    """int32 words `at` of the sum of `addends.Addends`; rows and last are int32 too, WIDTH of them a row."""
    token, word = at // WIDTH, at % WIDTH
    low, high = tl.zeros(at.shape, tl.float32), tl.zeros(at.shape, tl.float32)
    for each in tl.static_range(ADDENDS):
        one = tl.load(ids + token * ADDENDS + each, mask=inside, other=-1)
        mine = inside & (one >= EXPERT) & (one < EXPERT + COUNT)
        even, odd = _halves(tl.load(rows + (token * ADDENDS + each) * WIDTH + word, mask=mine, other=0))
        low, high = low + even, high + odd
    even, odd = _halves(tl.load(last + at, mask=inside, other=0))
    return _pair(low + even, high + odd)


@triton.jit(do_not_specialize=["expert", "count", "rank", "words", "patience"])
def peer_sum_kernel(
    partial, rows, ids, last, expert, count, places, calls, rank, words, patience,
    SLOT: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr, WIDTH: tl.constexpr,
    ADDENDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """partial: int32 [words], two bf16 each, in place; with ADDENDS the part is that of `_added_up`, and partial is
    written only. places int64 [WORLD]: every card's int64 [2, WORLD, SLOT] as this process addresses it. calls int32
    [PROGRAMS]: the calls so far. patience: looks at what has not come, -1 all.
    """
    after_producers(PDL)
    program, programs = tl.program_id(0), tl.num_programs(0)
    call = tl.load(calls + program) + 1
    turn = (call & 1) * (WORLD * SLOT)
    column, sender = tl.arange(0, BLOCK), tl.arange(0, WORLD)[:, None]
    for first in range(program * BLOCK, words, programs * BLOCK):
        at, inside = first + column, first + column < words
        if ADDENDS > 0:
            own = _added_up(rows, ids, last, at, inside, expert, count, WIDTH, ADDENDS)
        else:
            own = tl.load(partial + at, mask=inside, other=0)
        word = own.to(tl.uint32, bitcast=True).to(tl.int64) | (call.to(tl.int64) << 32)
        for peer in tl.static_range(WORLD):
            place = tl.load(places + peer).to(tl.pointer_type(tl.int64))
            _push(place + turn + rank * SLOT + at, word, inside)
    came = tl.load(places + rank).to(tl.pointer_type(tl.int64)) + turn
    left = patience
    for first in range(program * BLOCK, words, programs * BLOCK):
        at, inside = first + column, first + column < words
        late = 1
        while (late > 0) & (left != 0):
            found = tl.load(came + sender * SLOT + at[None, :], mask=inside[None, :], other=0, volatile=True)
            late = tl.max(tl.max((((found >> 32).to(tl.int32) != call) & inside[None, :]).to(tl.int32), 1), 0)
            left -= (patience > 0).to(tl.int32)
        low, high = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for peer in tl.static_range(WORLD):
            even, odd = _halves(tl.load(came + peer * SLOT + at, mask=inside, other=0, volatile=True).to(tl.int32))
            if peer == 0:
                low, high = even, odd
            else:
                low, high = low + even, high + odd
        tl.store(partial + at, _pair(low, high), mask=inside)
    tl.debug_barrier()  # every thread has read the count
    every = tl.arange(0, PROGRAMS)
    rest = (every == program) | ((program == programs - 1) & (every > program))  # of those that did not run as well
    tl.store(calls + every, tl.zeros((PROGRAMS,), tl.int32) + call, mask=rest)
