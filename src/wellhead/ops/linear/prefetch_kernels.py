"""Requests for lines of L2, of which nothing is read."""

import triton
import triton.language as tl


@triton.jit
def _ask(start, size, LINE: tl.constexpr, LINES: tl.constexpr):
    """A request for each of this program's lines among `size` bytes; nothing is read, nothing waits."""
    line = tl.program_id(0).to(tl.int64) * LINES
    if line * LINE < size:
        at = tl.minimum((line + tl.arange(0, LINES)) * LINE, size - 1)
        asm: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
        tl.inline_asm_elementwise(asm, "=r,l", [(start + at).to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit(do_not_specialize=["size0", "size1", "size2"])
def prefetch_kernel(start0, start1, start2, size0, size1, size2, LINE: tl.constexpr, LINES: tl.constexpr):
    """Every line of three ranges of bytes. Grid: programs enough for the longest."""
    _ask(start0, size0, LINE, LINES)
    _ask(start1, size1, LINE, LINES)
    _ask(start2, size2, LINE, LINES)
