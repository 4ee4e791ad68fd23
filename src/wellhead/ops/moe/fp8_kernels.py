"""Block-FP8 experts: a block of G slots of one expert meets R weight rows, 128 inputs a step, on FP8 tensor cores.

Within 128 inputs the products of E4M3 codes are summed as they are; the scale of the activations (one per 128) and that
of the weight (one per 128 x 128) multiply the sum. A step of few slots is R x 128 bytes of weight and next to no
arithmetic, so the same kernel streams one token's experts and multiplies thousands of tokens.
"""

import triton
import triton.language as tl

from wellhead.ops.device_formats import e4m3, power_of_two, round_rows
from wellhead.ops.moe.hidden_kernels import block_of, round_hidden, swiglu


@triton.jit
def _product(
    x, x_scale, row, used, w, w_scale, out_row, scale_row, K,
    R: tl.constexpr, G: tl.constexpr, ROUND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """fp32 [R, G] = w[out_row] x[row]^T over K inputs; scale_row [R] names the row of w_scale [.., K/128].

    x E4M3 codes with x_scale, or bf16 that is rounded on the way in if ROUND. Columns that are not `used` are zero.
    """
    k = tl.arange(0, 128)
    scale_at = (row * (K // 128)).to(tl.int32)  # the plan keeps it below 2^31
    acc = tl.zeros((R, G), dtype=tl.float32)
    for at in range(0, K, 128):
        codes = e4m3(tl.load(w + out_row[:, None] * K + (at + k)[None, :]))
        tile = tl.load(x + row[:, None] * K + (at + k)[None, :], mask=used[:, None], other=0)
        if ROUND:
            tile, factor = round_rows(tile.to(tl.float32), G, 128)
            factor = tl.reshape(factor, (G,))
        else:
            tile = e4m3(tile)
            factor = power_of_two(tl.load(x_scale + (scale_at + at // 128), mask=used, other=0))
        weight = tl.load(w_scale + scale_row * (K // 128) + at // 128)
        weight = weight if WIDE else power_of_two(weight)
        acc += tl.dot(codes, tl.trans(tile)) * (weight[:, None] * factor[None, :])
    return acc


@triton.jit
def gate_up_kernel(
    x, x_scale, w13, s13, block_expert, block_slots, slot_weight, h, h_scale,
    D, M_INTER, TOP_K, limit,
    G: tl.constexpr, R: tl.constexpr, ROUND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """h[slot] = weight * silu(min(gate, limit)) * clamp(up): bf16 or, if ROUND, rounded from bf16 to E4M3 with h_scale.

    One program per (block of G slots, R / 2 hidden channels), the programs of a block next to each other. x E4M3
    [T, D], x_scale u8 [T, D/128]; w13 E4M3 [E, 2m, D], rows gate_i, up_i in turn, and s13 [E, 2m/128, D/128], u8 or
    fp32 (WIDE), in turn likewise; block_expert i32 [blocks] (-1: no block), block_slots i32 [blocks, G] (slot = token *
    TOP_K + place, -1 none); h [T * TOP_K, m], h_scale u8 [T * TOP_K, m/128].
    """
    tiles = 2 * M_INTER // R
    at, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    expert = tl.load(block_expert + at)
    if expert < 0:
        return
    slot, used = block_of(block_slots, at, G)
    line = tile * R + tl.arange(0, R)
    out_row = expert.to(tl.int64) * (2 * M_INTER) + line
    scale_row = expert.to(tl.int64) * (2 * M_INTER // 128) + line // 256 * 2 + line % 2
    acc = _product(x, x_scale, slot // TOP_K, used, w13, s13, out_row, scale_row, D, R, G, False, WIDE)
    hidden = swiglu(acc, tl.load(slot_weight + slot, mask=used, other=0.0), limit, G, R)
    channel = tile * (R // 2) + tl.arange(0, R // 2)
    place = h + slot[:, None] * M_INTER + channel[None, :]
    if ROUND:
        codes, exponent = round_hidden(hidden)
        tl.store(place, codes, mask=used[:, None])
        tl.store(h_scale + slot * (M_INTER // 128) + tile, exponent.to(tl.uint8), mask=used)
    else:
        tl.store(place, hidden, mask=used[:, None])


@triton.jit
def down_kernel(
    h, h_scale, w2, s2, block_expert, block_slots, y,
    D, M_INTER,
    G: tl.constexpr, R: tl.constexpr, ROUND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y[slot] = bf16(w2 h[slot]): one program per (block of G slots, R output channels).

    h E4M3 with h_scale, or bf16 that is rounded here if ROUND; w2 E4M3 [E, D, m], s2 [E, D/128, m/128]; y bf16
    [slots, D]. Rows of slots that no block lists are not written.
    """
    tiles = D // R
    at, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    expert = tl.load(block_expert + at)
    if expert < 0:
        return
    slot, used = block_of(block_slots, at, G)
    channel = tile * R + tl.arange(0, R)
    out_row = expert.to(tl.int64) * D + channel
    scale_row = expert.to(tl.int64) * (D // 128) + channel // 128
    acc = _product(h, h_scale, slot, used, w2, s2, out_row, scale_row, M_INTER, R, G, ROUND, WIDE)
    tl.store(y + slot[:, None] * D + channel[None, :], tl.trans(acc.to(tl.bfloat16)), mask=used[:, None])
