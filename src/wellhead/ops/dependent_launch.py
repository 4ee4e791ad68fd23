"""Programmatic dependent launch (PDL): a kernel's weights start streaming while the kernel in front of it ends.

A kernel launched so may start as soon as every block of the kernel in front has called `after_producers`. Until its own
call it may read what nobody writes while a model runs (weights), and what kernels before the one in front wrote: that
one called `after_producers` too, so all older ones had ended. Behind a kernel launched EARLY that is one kernel less.
Where the card has no PDL this is nothing. `card` says how a launch asks for it, `testing.launch_order` reads from the
machine code that no compiler moved anything in front of the wait.
"""

import triton
import triton.language as tl

from wellhead.ops import card
from wellhead.ops.device_formats import INTERPRETED

EARLY = tl.constexpr(card.EARLY)


@triton.jit
def after_producers(PDL: tl.constexpr):
    """Wait for the kernel in front and let the next one begin; call it once, before the first read of activations. PDL
    is True, False, or EARLY: a small kernel between two large ones lets the second begin while the first ends.
    """
    if PDL == EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    if PDL:
        tl.extra.cuda.gdc_wait()
    if PDL and PDL != EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def ask(places):
    """L2 fetches the line of each pointer; nothing waits for it, and nothing is read."""
    if not INTERPRETED:
        asm: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
        tl.inline_asm_elementwise(asm, "=r,l", [places.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)
