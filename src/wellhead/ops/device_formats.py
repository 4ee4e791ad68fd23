"""Number formats inside kernels: the device halves of `wellhead.formats`, one helper a conversion."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # it has no inline PTX

# four bytes at a time: low codes to the first result, high codes to the second
_WIDEN = tl.constexpr("""{ .reg .b32 t, u, v, w;
shl.b32 t, $2, 4; and.b32 t, t, 0x80808080; shl.b32 u, $2, 2; and.b32 u, u, 0x1C1C1C1C; or.b32 $0, t, u;
and.b32 v, $2, 0x80808080; shr.b32 w, $2, 2; and.b32 w, w, 0x1C1C1C1C; or.b32 $1, v, w; }""")


@triton.jit
def widen_e2m1(packed):
    """uint8 holding two E2M1 codes seem -> E4M3 (low nibbles, high nibbles), byte s00eem00 = value / 64 exactly."""
    if INTERPRETED:
        low = ((packed & 8) << 4) | ((packed & 7) << 2)
        high = (packed & 0x80) | ((packed >> 2) & 0x1C)
    else:
        low, high = tl.inline_asm_elementwise(
            _WIDEN, "=r,=r,r", [packed], dtype=(tl.uint8, tl.uint8), is_pure=True, pack=4
        )
    return low.to(tl.float8e4nv, bitcast=True), high.to(tl.float8e4nv, bitcast=True)


@triton.jit
def power_of_two(byte):
    """fp32 2^(byte - 127) of UE8M0 bytes; byte 0 gives 0."""
    return (byte.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_exponent(amax):
    """int32 UE8M0 byte of 2^ceil(log2(max(amax, 1e-4) / 448)), off the bit pattern as `formats.block_fp8` does."""
    bits = (tl.maximum(amax, 1e-4) * (1.0 / 448.0)).to(tl.int32, bitcast=True)
    return (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)


@triton.jit
def round_groups(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """fp32 [ROWS, COLUMNS] -> (E4M3, int32 UE8M0 byte [ROWS, COLUMNS / GROUP]): `formats.block_fp8.quantize_rows`."""
    grouped = tl.reshape(x, (ROWS, COLUMNS // GROUP, GROUP))
    exponent = scale_exponent(tl.max(tl.abs(grouped), axis=2))
    codes = (grouped * power_of_two(254 - exponent)[:, :, None]).to(tl.float8e4nv)
    return tl.reshape(codes, (ROWS, COLUMNS)), exponent


@triton.jit
def round_rows(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """fp32 [ROWS, COLUMNS] -> (E4M3, fp32 scale [ROWS, COLUMNS / 128]): the rounding of activations."""
    codes, exponent = round_groups(x, ROWS, COLUMNS, 128)
    return codes, power_of_two(exponent)
