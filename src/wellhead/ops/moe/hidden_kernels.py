"""What the kernels over blocks of slots share: their place in the lists, SwiGLU, and the rounding of its result."""

import triton
import triton.language as tl

from wellhead.ops.device_formats import e4m3_bytes, power_of_two, scale_exponent


@triton.jit
def block_of(block_slots, at, G: tl.constexpr):
    """(slot int64 [G], used [G]) of block `at`: slots that nobody uses read as slot 0."""
    slots = tl.load(block_slots + at.to(tl.int64) * G + tl.arange(0, G))
    return tl.maximum(slots, 0).to(tl.int64), slots >= 0


@triton.jit
def swiglu(acc, weight, limit, G: tl.constexpr, R: tl.constexpr):
    """bf16 [G, R / 2] = weight [G] * silu(min(gate, limit)) * clamp(up) of fp32 [R, G], rows gate_i, up_i in turn."""
    gate, up = tl.split(tl.reshape(tl.trans(acc.to(tl.bfloat16)), (G, R // 2, 2)).to(tl.float32))
    gate = tl.minimum(gate, limit)
    hidden = gate / (1.0 + tl.exp(-gate)) * tl.minimum(tl.maximum(up, -limit), limit)
    return (hidden * weight[:, None]).to(tl.bfloat16)


@triton.jit
def round_hidden(hidden):
    """bf16 [G, 128] -> (E4M3 bytes [G, 128], int32 UE8M0 byte [G]): `formats.block_fp8.quantize_rows`."""
    tl.static_assert(hidden.shape[1] == 128, "128 channels are rounded together: R is 256 where a product does it")
    wide = hidden.to(tl.float32)
    exponent = scale_exponent(tl.max(tl.abs(wide), axis=1))
    return e4m3_bytes(wide * power_of_two(254 - exponent)[:, None]), exponent
