"""Weights asked for ahead: a launch that reads nothing."""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import ask


@triton.jit
def _ask(start, size, LINE: tl.constexpr, LINES: tl.constexpr):
    """A request for each of this program's lines among `size` bytes; nothing is read, nothing waits."""
    line = tl.program_id(0).to(tl.int64) * LINES
    if line * LINE < size:
        at = tl.minimum((line + tl.arange(0, LINES)) * LINE, size - 1)
        ask(start + at)


@triton.jit(do_not_specialize=["size0", "size1", "size2"])
def prefetch_kernel(start0, start1, start2, size0, size1, size2, LINE: tl.constexpr, LINES: tl.constexpr):
    """Every line of three ranges of bytes. Grid: programs enough for the longest."""
    _ask(start0, size0, LINE, LINES)
    _ask(start1, size1, LINE, LINES)
    _ask(start2, size2, LINE, LINES)
