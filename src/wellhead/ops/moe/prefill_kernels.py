"""MXFP4 experts for many tokens: a block of G slots of one expert meets R weight rows at a time on tensor cores.

Two numerics. Rounded: activations are E4M3 with a power-of-two scale per 128, as the checkpoint was made for. Otherwise
they stay bf16.
Two products. NATIVE: weights widen to E4M3 in registers and block-scaled instructions apply both scales; the hidden
vector is rounded where it is made, so a program holds 128 hidden channels. Otherwise weights widen to bf16, and rounded
activations too, in launches of their own in front of each product: a significand of at most four bits times a power of
two is exact there, so the products differ in the order of fp32 sums only. A card without block-scaled instructions is
given the second, as the compiler would lower the first to bf16 all the same, in a form that it does not pipeline.
"""

import triton
import triton.language as tl

from wellhead.ops.device_formats import e4m3, power_of_two, widen_e2m1_words, widen_mxfp4
from wellhead.ops.moe.hidden_kernels import block_of, round_hidden, swiglu

# by name, because the interpreter does not wrap a literal
E4M3 = tl.constexpr("e4m3")


@triton.jit
def widen_kernel(codes, scale, out, D, BLOCK: tl.constexpr):
    """out bf16 [T, D] = codes E4M3 [T, D] times scale u8 [T, D/128], exact. Grid (T, ceil(D / BLOCK))."""
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < D
    byte = tl.load(scale + token * (D // 128) + column // 128, mask=inside, other=0)
    value = e4m3(tl.load(codes + token * D + column, mask=inside, other=0)).to(tl.float32)
    tl.store(out + token * D + column, (value * power_of_two(byte)).to(tl.bfloat16), mask=inside)


@triton.jit
def round_hidden_kernel(h, M_INTER, GROUPS: tl.constexpr):
    """h bf16 [slots, m] is rounded to E4M3 per 128 channels and widened again, in place. Grid (slots, ceil(m / 128
    GROUPS)). A row of a slot that no block lists holds anything: nobody reads it, and no row depends on another.
    """
    slot, group = tl.program_id(0).to(tl.int64), tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    place = h + slot * M_INTER + group[:, None] * 128 + tl.arange(0, 128)[None, :]
    inside = (group < M_INTER // 128)[:, None]
    codes, exponent = round_hidden(tl.load(place, mask=inside, other=0.0))
    value = e4m3(codes).to(tl.float32) * power_of_two(exponent)[:, None]
    tl.store(place, value.to(tl.bfloat16), mask=inside)


@triton.jit
def _weight_scales(w_scale, out_row, at, K, KC: tl.constexpr):
    """UE8M0 bytes [R, KC / 32] of inputs at .. at + KC - 1."""
    return tl.load(w_scale + out_row[:, None] * (K // 32) + (at // 32 + tl.arange(0, KC // 32))[None, :])


@triton.jit
def _input_scales(x_scale, row, used, at, K, KC: tl.constexpr):
    """The same of the activations, [G, KC / 32]: the byte of 128 inputs four times."""
    place = row[:, None] * (K // 128) + ((at // 32 + tl.arange(0, KC // 32)) // 4)[None, :]
    return tl.load(x_scale + place, mask=used[:, None], other=0)


@triton.jit
def _product(
    x, x_scale, row, used, w, w_scale, out_row, K,
    R: tl.constexpr, G: tl.constexpr, KC: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """fp32 [R, G] = w[out_row] x[row]^T over K inputs. Columns that are not `used` are zero whatever x holds.

    NATIVE: x E4M3 codes with x_scale, w 16-bit words of four codes. Otherwise x bf16, w bytes of two codes.
    """
    CODES: tl.constexpr = 4 if NATIVE else 2
    word, k = tl.arange(0, KC // CODES), tl.arange(0, KC)
    acc = tl.zeros((R, G), dtype=tl.float32)
    scale = _weight_scales(w_scale, out_row, 0, K, KC)
    if NATIVE:
        x_byte = _input_scales(x_scale, row, used, 0, K, KC)
    for at in range(0, K, KC):
        codes = tl.load(w + out_row[:, None] * (K // CODES) + (at // CODES + word)[None, :])
        tile = tl.load(x + row[:, None] * K + (at + k)[None, :], mask=used[:, None], other=0.0)
        # scales are too narrow for asynchronous copies, so they are asked for one step ahead
        ahead = tl.minimum(at + KC, K - KC)
        then = _weight_scales(w_scale, out_row, ahead, K, KC)
        if NATIVE:
            x_then = _input_scales(x_scale, row, used, ahead, K, KC)
            wide = widen_e2m1_words(codes, R, KC)
            acc = tl.dot_scaled(wide, scale, E4M3, tl.trans(tile), x_byte, E4M3, acc, fast_math=True)
            x_byte = x_then
        else:
            acc = tl.dot(widen_mxfp4(codes, scale, R, KC), tl.trans(tile), acc)
        scale = then
    return acc * 64.0 if NATIVE else acc  # widened codes are value / 64


@triton.jit
def gate_up_kernel(
    x, x_scale, w13, s13, block_expert, block_slots, slot_weight, h, h_scale,
    D, M_INTER, TOP_K, limit,
    G: tl.constexpr, R: tl.constexpr, KC: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """h[slot] = weight * silu(min(gate, limit)) * clamp(up), bf16, or NATIVE rounded from bf16 to E4M3 with h_scale.

    One program per (block of G slots, R / 2 hidden channels), the programs of a block next to each other. x E4M3
    [T, D] with x_scale u8 [T, D/128], or bf16 [T, D]; w13 [E, 2m, D/2 bytes] and s13 u8 [E, 2m, D/32], rows gate_i,
    up_i in turn; block_expert i32 [blocks] (-1: no block), block_slots i32 [blocks, G] (slot = token * TOP_K + place,
    -1 none); h [T * TOP_K, m], h_scale u8 [T * TOP_K, m/128].
    """
    tiles = 2 * M_INTER // R
    at, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    expert = tl.load(block_expert + at)
    if expert < 0:
        return
    slot, used = block_of(block_slots, at, G)
    out_row = expert.to(tl.int64) * (2 * M_INTER) + tile * R + tl.arange(0, R)
    acc = _product(x, x_scale, slot // TOP_K, used, w13, s13, out_row, D, R, G, KC, NATIVE)
    hidden = swiglu(acc, tl.load(slot_weight + slot, mask=used, other=0.0), limit, G, R)
    channel = tile * (R // 2) + tl.arange(0, R // 2)
    place = h + slot[:, None] * M_INTER + channel[None, :]
    if NATIVE:
        codes, exponent = round_hidden(hidden)
        tl.store(place, codes.to(tl.float8e4nv, bitcast=True), mask=used[:, None])
        tl.store(h_scale + slot * (M_INTER // 128) + tile, exponent.to(tl.uint8), mask=used)
    else:
        tl.store(place, hidden, mask=used[:, None])


@triton.jit
def down_kernel(
    h, h_scale, w2, s2, block_expert, block_slots, y,
    D, M_INTER,
    G: tl.constexpr, R: tl.constexpr, KC: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """y[slot] = bf16(w2 h[slot]): one program per (block of G slots, R output channels).

    h as `gate_up_kernel` left it with h_scale, or `round_hidden_kernel`; w2 [E, D, m/2 bytes], s2 u8 [E, D, m/32]; y
    bf16 [slots, D]. Rows of slots that no block lists are not written.
    """
    tiles = D // R
    at, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    expert = tl.load(block_expert + at)
    if expert < 0:
        return
    slot, used = block_of(block_slots, at, G)
    channel = tile * R + tl.arange(0, R)
    out_row = expert.to(tl.int64) * D + channel
    acc = _product(h, h_scale, slot, used, w2, s2, out_row, M_INTER, R, G, KC, NATIVE)
    tl.store(y + slot[:, None] * D + channel[None, :], tl.trans(acc.to(tl.bfloat16)), mask=used[:, None])
