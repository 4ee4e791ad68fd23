"""tl.dot of bf16 operands that also means that under Triton's interpreter.

The interpreter (3.6 to 3.9) keeps bf16 as its 16 bits and multiplies those as integers. Widening first is exact: a
product of two bf16 numbers fits fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def bf16_dot(a, b, acc):  # type: ignore[no-untyped-def]
    """acc + a b: bf16 operands, fp32 sum."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc)
