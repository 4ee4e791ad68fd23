"""Number formats inside kernels: the device halves of `wellhead.formats`, one helper a conversion.

E4M3 travels as bytes. `e4m3` makes operands of them and `e4m3_bytes` rounds to them: with float8e4nv where the target
has it, by integer arithmetic where not (SM80, SM86), and with the same results.
"""

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq
from triton.runtime.jit import constexpr_function

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # it has no inline PTX


@constexpr_function
def has_e4m3():
    """Whether the target that is compiled for converts float8e4nv (`dispatch.crosscompile` names it where it is not
    this process's card).
    """
    return INTERPRETED.value or cuda_capability_geq(8, 9)


@triton.jit
def e4m3(codes):
    """E4M3 of bytes, for a product or to widen: float8e4nv, or f16 of the same value."""
    if has_e4m3():  # of the target, also where it is another than this process's card
        return codes.to(tl.float8e4nv, bitcast=True)
    else:
        return e4m3_by_integers(codes)


@triton.jit
def load_e4m3(place, mask):
    """`e4m3` of the bytes at `place`, zero where `mask` is not. Loaded as E4M3: of bytes that become E4M3 later, the
    compiler takes a copy through registers where a product could read shared memory.
    """
    if has_e4m3():
        return tl.load(place.to(tl.pointer_type(tl.float8e4nv)), mask=mask, other=0.0)
    else:
        return e4m3(tl.load(place, mask=mask, other=0))


# four bytes at a time, two to a word: s0eeeemmm0000000 and a bit that makes infinity's exponent of 0x7F, times 256
_HALVES = tl.constexpr("""{ .reg .b32 a, b, s, n, f; mov.b32 f, 0x5C005C00;
prmt.b32 a, $2, 0, 0x1404; and.b32 s, a, 0x80008000; and.b32 a, a, 0x7F007F00; shr.b32 a, a, 1;
add.u32 n, a, 0x00800080; and.b32 n, n, 0x40004000; or.b32 a, a, n; or.b32 a, a, s; mul.f16x2 $0, a, f;
prmt.b32 b, $2, 0, 0x3424; and.b32 s, b, 0x80008000; and.b32 b, b, 0x7F007F00; shr.b32 b, b, 1;
add.u32 n, b, 0x00800080; and.b32 n, n, 0x40004000; or.b32 b, b, n; or.b32 b, b, s; mul.f16x2 $1, b, f; }""")


@triton.jit
def e4m3_by_integers(codes):
    """f16 of E4M3 bytes seeeemmm: s0eeeemmm0000000 is value * 2^-8, denormals too; 0x7F and 0xFF are NaN."""
    if INTERPRETED:
        wide = codes.to(tl.uint16)
        size = (wide & 0x7F) << 7
        bits = (((wide & 0x80) << 8) | size | ((size + 0x80) & 0x4000)).to(tl.uint16)
        return bits.to(tl.float16, bitcast=True) * tl.full((), 256.0, tl.float16)
    else:
        return tl.inline_asm_elementwise(_HALVES, "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)


@triton.jit
def e4m3_bytes(x):
    """uint8 E4M3 of fp32: the nearest, of two the even one, at most 448; NaN gives 0x7F."""
    if has_e4m3():  # as above
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        return e4m3_bytes_by_integers(x)


@triton.jit
def e4m3_bytes_by_integers(x):
    """From 2^-6 on the fp32 bits, rebiased, rounded to 3 fraction bits; below, |x| + 2^14, whose last bit is 2^-9."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = size - (120 << 23)
    normal = (normal + 0x7FFFF + ((normal >> 20) & 1)) >> 20
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) & 0xF
    code = tl.minimum(tl.where(size < (121 << 23), small, normal), 0x7E)
    code = tl.where(size > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


# four bytes at a time: low codes to the first result, high codes to the second
_WIDEN = tl.constexpr("""{ .reg .b32 t, u, v, w;
shl.b32 t, $2, 4; and.b32 t, t, 0x80808080; shl.b32 u, $2, 2; and.b32 u, u, 0x1C1C1C1C; or.b32 $0, t, u;
and.b32 v, $2, 0x80808080; shr.b32 w, $2, 2; and.b32 w, w, 0x1C1C1C1C; or.b32 $1, v, w; }""")


# the same with results in halves of words: s000eem000000000
_WIDEN_HALVES = tl.constexpr("""{ .reg .b32 t, u, v, w;
shl.b32 t, $4, 4; and.b32 t, t, 0x80808080; shl.b32 u, $4, 1; and.b32 u, u, 0x0E0E0E0E; or.b32 t, t, u;
and.b32 v, $4, 0x80808080; shr.b32 w, $4, 3; and.b32 w, w, 0x0E0E0E0E; or.b32 v, v, w;
prmt.b32 $0, t, 0, 0x1404; prmt.b32 $1, t, 0, 0x3424; prmt.b32 $2, v, 0, 0x1404; prmt.b32 $3, v, 0, 0x3424; }""")


@constexpr_function
def e2m1_unit():
    """What the operands of `widen_e2m1` are to be multiplied with: a power of two."""
    return 2.0**6 if has_e4m3() else 2.0**14


@triton.jit
def widen_e2m1(packed):
    """uint8 holding two E2M1 codes seem -> (low nibbles, high nibbles) for products with `e4m3`, value / `e2m1_unit()`
    exactly: E4M3 s00eem00, or f16 s000eem000000000."""
    if INTERPRETED:
        low = ((packed & 8) << 4) | ((packed & 7) << 2)
        high = (packed & 0x80) | ((packed >> 2) & 0x1C)
        return low.to(tl.float8e4nv, bitcast=True), high.to(tl.float8e4nv, bitcast=True)
    elif has_e4m3():
        low, high = tl.inline_asm_elementwise(
            _WIDEN, "=r,=r,r", [packed], dtype=(tl.uint8, tl.uint8), is_pure=True, pack=4
        )
        return low.to(tl.float8e4nv, bitcast=True), high.to(tl.float8e4nv, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            _WIDEN_HALVES, "=r,=r,=r,=r,r", [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )


# two 16-bit words at a time, the codes of each in order in one result
_WIDEN_WORDS = tl.constexpr("""{ .reg .b32 t, u, v, w;
shl.b32 t, $2, 4; and.b32 t, t, 0x80808080; shl.b32 u, $2, 2; and.b32 u, u, 0x1C1C1C1C; or.b32 t, t, u;
and.b32 v, $2, 0x80808080; shr.b32 w, $2, 2; and.b32 w, w, 0x1C1C1C1C; or.b32 v, v, w;
prmt.b32 $0, t, v, 0x5140; prmt.b32 $1, t, v, 0x7362; }""")


@triton.jit
def widen_e2m1_words(words, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """16-bit words [ROWS, COLUMNS / 4] of four E2M1 codes, lowest first -> E4M3 [ROWS, COLUMNS] = value / 64.

    Bytes would do, but the compiler takes them out of the words that it loads and puts them back, one by one.
    """
    if INTERPRETED:
        wide = words.to(tl.uint16, bitcast=True).to(tl.uint32)
        wide = (wide & 0xFF) | ((wide & 0xFF00) << 8)
        wide = (wide & 0x000F000F) | ((wide & 0x00F000F0) << 4)  # a nibble a byte
        wide = ((wide & 0x08080808) << 4) | ((wide & 0x07070707) << 2)
    else:
        wide = tl.inline_asm_elementwise(_WIDEN_WORDS, "=r,=r,r", [words], dtype=tl.uint32, is_pure=True, pack=2)
    halves = tl.join((wide & 0xFFFF).to(tl.uint16), (wide >> 16).to(tl.uint16))
    codes = tl.join((halves & 0xFF).to(tl.uint8), (halves >> 8).to(tl.uint8))
    return tl.reshape(codes, (ROWS, COLUMNS)).to(tl.float8e4nv, bitcast=True)


@triton.jit
def widen_mxfp4(packed, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Bytes [ROWS, COLUMNS / 2] of two E2M1 codes and UE8M0 bytes [ROWS, COLUMNS / 32] -> bf16 [ROWS, COLUMNS], exact.

    A product moves both codes of a byte to their halves of a word at once: code seem becomes s000000ee m000000, the
    bf16 of value * 2^-126.
    """
    wide = packed.to(tl.uint32)
    pair = ((wide * 0x00040040) & 0x01C001C0) | ((wide * 0x01001000) & 0x80008000)
    codes = tl.join((pair & 0xFFFF).to(tl.uint16), (pair >> 16).to(tl.uint16))
    # a scalar: past a constant tile the compiler no longer widens in the registers of the product's operand
    unbias = tl.full((), 2.0**126, tl.float32).to(tl.bfloat16)
    values = tl.reshape(codes.to(tl.bfloat16, bitcast=True) * unbias, (ROWS, COLUMNS // 32, 32))
    factor = (scale.to(tl.uint16) << 7).to(tl.bfloat16, bitcast=True)
    return tl.reshape(values * factor[:, :, None], (ROWS, COLUMNS))


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
    """fp32 [ROWS, COLUMNS] -> (E4M3 bytes, int32 UE8M0 [ROWS, COLUMNS / GROUP]): `formats.block_fp8.quantize_rows`."""
    grouped = tl.reshape(x, (ROWS, COLUMNS // GROUP, GROUP))
    exponent = scale_exponent(tl.max(tl.abs(grouped), axis=2))
    codes = e4m3_bytes(grouped * power_of_two(254 - exponent)[:, :, None])
    return tl.reshape(codes, (ROWS, COLUMNS)), exponent


@triton.jit
def round_rows(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """fp32 [ROWS, COLUMNS] -> (E4M3, fp32 scale [ROWS, COLUMNS / 128]): the rounding of activations."""
    codes, exponent = round_groups(x, ROWS, COLUMNS, 128)
    return e4m3(codes), power_of_two(exponent)


@triton.jit
def settled(x):
    """x bf16. What computes it stays above, once: the compiler would move it behind the change of layout of each dot,
    where every warp that needs the operand computes it again.

    It would also see bytes that x came from and lay the operands out for bytes, which ldmatrix cannot read.
    """
    if INTERPRETED:
        return x
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.bfloat16, is_pure=False, pack=2)
