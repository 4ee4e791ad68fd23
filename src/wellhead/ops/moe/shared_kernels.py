"""Between the two products of the shared expert: SwiGLU and the rounding of its result."""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import round_groups


@triton.jit
def swiglu_round_kernel(gate_up, codes, scale, limit, M_INTER, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """codes E4M3 [T, m], scale u8 [T, m/128] of bf16(silu(min(g, limit)) * clamp(u)); gate_up bf16 [T, 2m], g first.

    One program per (token, BLOCK channels); BLOCK divides m.
    """
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    row = gate_up + token * (2 * M_INTER) + column
    after_producers(PDL)
    gate = tl.minimum(tl.load(row).to(tl.float32), limit)
    up = tl.minimum(tl.maximum(tl.load(row + M_INTER).to(tl.float32), -limit), limit)
    hidden = (gate / (1.0 + tl.exp(-gate)) * up).to(tl.bfloat16)
    found, exponent = round_groups(hidden.to(tl.float32), 1, BLOCK, 128)
    group = tl.program_id(1) * (BLOCK // 128) + tl.arange(0, BLOCK // 128)[None, :]
    tl.store(codes + token * M_INTER + column, found)
    tl.store(scale + token * (M_INTER // 128) + group, exponent.to(tl.uint8))
