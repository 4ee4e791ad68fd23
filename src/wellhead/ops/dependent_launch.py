"""Programmatic dependent launch (PDL): a kernel's weights start streaming while the kernel in front of it ends.

A kernel launched so may start as soon as every block of the kernel in front has called `after_producers`. Until its own
call it may read what nobody writes while a model runs (weights), and what kernels before the one in front wrote: that
one called `after_producers` too, so all older ones had ended. Where the card has no PDL this is nothing. `overlap` says
how a launch asks for it.
"""

import triton
import triton.language as tl


@triton.jit
def after_producers(PDL: tl.constexpr):
    """Wait for the kernel in front and let the next one begin; call it once, before the first read of activations."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
