"""The kernel of sums over ranks through memory that all their cards can write.

Every rank pushes its part, with the number of the call beside each four bytes, into its place on every card, waits
until all parts of the call have come, and adds them in the order of the ranks in fp32. Eight bytes are stored at once,
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


@triton.jit(do_not_specialize=["rank", "words", "patience"])
def peer_sum_kernel(
    partial, places, calls, rank, words, patience,
    SLOT: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """partial: int32 [words], two bf16 each, in place. places int64 [WORLD]: every card's int64 [2, WORLD, SLOT] as
    this process addresses it. calls int32 [PROGRAMS]: the calls so far. patience: looks at what has not come, -1 all.
    """
    after_producers(PDL)
    program, programs = tl.program_id(0), tl.num_programs(0)
    call = tl.load(calls + program) + 1
    turn = (call & 1) * (WORLD * SLOT)
    column, sender = tl.arange(0, BLOCK), tl.arange(0, WORLD)[:, None]
    for first in range(program * BLOCK, words, programs * BLOCK):
        at, inside = first + column, first + column < words
        own = tl.load(partial + at, mask=inside, other=0).to(tl.uint32, bitcast=True).to(tl.int64)
        word = own | (call.to(tl.int64) << 32)
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
            part = tl.load(came + peer * SLOT + at, mask=inside, other=0, volatile=True).to(tl.uint32)
            even = (part << 16).to(tl.float32, bitcast=True)
            odd = (part & 0xFFFF0000).to(tl.float32, bitcast=True)
            if peer == 0:
                low, high = even, odd
            else:
                low, high = low + even, high + odd
        tl.store(partial + at, _pair(low, high), mask=inside)
    tl.debug_barrier()  # every thread has read the count
    every = tl.arange(0, PROGRAMS)
    rest = (every == program) | ((program == programs - 1) & (every > program))  # of those that did not run as well
    tl.store(calls + every, tl.zeros((PROGRAMS,), tl.int32) + call, mask=rest)
