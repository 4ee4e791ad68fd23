"""Weights read ahead: a launch that keeps nothing of what it reads."""

import triton
import triton.language as tl


@triton.jit
def _read(start, size, SECTOR: tl.constexpr, AT_ONCE: tl.constexpr, TURNS: tl.constexpr):
    """A byte of each of this program's sectors among `size` bytes. Volatile: nobody uses it. Prefetch instructions
    would gain half as much (docs/log.md).
    """
    for turn in tl.static_range(TURNS):
        first = (tl.program_id(0).to(tl.int64) * TURNS + turn) * (AT_ONCE * SECTOR)
        if first < size:
            tl.load(start + tl.minimum(first + tl.arange(0, AT_ONCE) * SECTOR, size - 1), volatile=True)


@triton.jit(do_not_specialize=["size0", "size1", "size2"])
def prefetch_kernel(
    start0, start1, start2, size0, size1, size2, SECTOR: tl.constexpr, AT_ONCE: tl.constexpr, TURNS: tl.constexpr
):  # fmt: skip
    """Every sector of three ranges of bytes. Grid: programs enough for the longest."""
    _read(start0, size0, SECTOR, AT_ONCE, TURNS)
    _read(start1, size1, SECTOR, AT_ONCE, TURNS)
    _read(start2, size2, SECTOR, AT_ONCE, TURNS)
