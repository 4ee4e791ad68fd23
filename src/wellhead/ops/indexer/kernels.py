"""Index logits over paged keys, FP8 or FP4: each tile of 64 keys is read once for all heads of up to G tokens.

The heads of a group of tokens are the M side of an E4M3 product, the keys of one page its N side; relu, the head's
weight and the sum over heads follow in registers, so no [T, H, C] tensor exists. The programs of a group take its pages
in turn: however short the request is, its pages spread over all of them. A page of 64 keys holds their codes, then
their scales (formats.index_key).
"""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers
from wellhead.ops.device_formats import e2m1_unit, e4m3, power_of_two, widen_e2m1

DIM = tl.constexpr(128)
PAGE = tl.constexpr(64)


@triton.jit
def _group(rows, lengths, TOKENS, COLUMNS, G: tl.constexpr):
    """(leads, request, lengths [G]) of the program's token and the next ones of its aligned group of G.

    A token leads if the one before it is in another group or of another request; lengths of tokens that it does not
    lead are 0.
    """
    first = tl.program_id(0)
    request = tl.load(rows + first)
    leads = first % G == 0
    if not leads:
        leads = tl.load(rows + first - 1) != request
    token = first + tl.arange(0, G)
    inside = (token < TOKENS) & (token // G == first // G)
    mine = inside & (tl.load(rows + token, mask=inside, other=-1) == request)
    return leads, request, tl.minimum(tl.load(lengths + token, mask=mine, other=0), COLUMNS)


@triton.jit
def _head_rows(length, HEADS, G: tl.constexpr, BH: tl.constexpr):
    """(row of [T, H] int64 [G BH], whether it is one): heads padded to BH, tokens without entries left out."""
    row = tl.arange(0, G * BH)
    token, head = tl.program_id(0) + row // BH, row % BH
    wanted = tl.reshape(tl.broadcast_to((length > 0)[:, None], (G, BH)), (G * BH,))
    return token.to(tl.int64) * HEADS + head, wanted & (head < HEADS)


@triton.jit
def _store_logits(logits, score, weight, scale, known, at, length, COLUMNS, G: tl.constexpr, BH: tl.constexpr):
    """Logits of entries at PAGE .. of G tokens: sum over heads of relu(score) weight, times the keys' scale."""
    weighted = tl.maximum(score, 0.0) * weight[:, None]
    total = tl.sum(tl.reshape(weighted, (G, BH, PAGE)), axis=1) * scale[None, :]
    total = tl.where(known[None, :], total, float("-inf"))
    entry = at * PAGE + tl.arange(0, PAGE)
    token = (tl.program_id(0) + tl.arange(0, G)).to(tl.int64)
    place = token[:, None] * COLUMNS + entry[None, :]
    tl.store(logits + place, total, mask=entry[None, :] < length[:, None])


@triton.jit(do_not_specialize=["TOKENS"])
def logits_fp8_kernel(
    q, weights, cache, table, rows, lengths, logits,
    TOKENS, HEADS, TABLE_WIDTH, COLUMNS, STRIDE,
    G: tl.constexpr, BH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """logits fp32 [T, COLUMNS], entries below lengths[t] only: E4M3 q [T, H, 128] on pages of 132-byte keys.

    weights fp32 [T, H]; cache u8, a page STRIDE bytes; table i32 [R, TABLE_WIDTH]; rows, lengths i32 [T].
    """
    after_producers(PDL)
    leads, request, length = _group(rows, lengths, TOKENS, COLUMNS, G)
    longest = tl.max(length, axis=0)
    if (not leads) | (tl.program_id(1) * PAGE >= longest):
        return
    column, key = tl.arange(0, DIM), tl.arange(0, PAGE)
    row, wanted = _head_rows(length, HEADS, G, BH)
    codes = tl.load(q + row[:, None] * DIM + column[None, :], mask=wanted[:, None], other=0)
    codes = e4m3(codes)
    weight = tl.load(weights + row, mask=wanted, other=0.0)
    pages = table + request.to(tl.int64) * TABLE_WIDTH
    for at in range(tl.program_id(1), tl.cdiv(longest, PAGE), tl.num_programs(1)):
        page = tl.load(pages + at)
        known = page + tl.zeros_like(key) >= 0  # a block: 3.9's interpreter takes no scalar mask
        base = cache + page.to(tl.int64) * STRIDE
        keys = tl.load(base + key[None, :] * DIM + column[:, None], mask=known[None, :], other=0)
        scale = tl.load((base + PAGE * DIM).to(tl.pointer_type(tl.float32)) + key, mask=known, other=0.0)
        score = tl.dot(codes, e4m3(keys))
        _store_logits(logits, score, weight, scale, known, at, length, COLUMNS, G, BH)


@triton.jit
def _widened(packed, ROWS: tl.constexpr):
    """[ROWS, 32], the values of 16 bytes a row over their unit, in their order."""
    return tl.reshape(tl.join(*widen_e2m1(packed)), (ROWS, 32))


@triton.jit
def _block_scale(word, B: tl.constexpr):
    """fp32 scales of block B from the four scale bytes of a row, read as one int32."""
    return power_of_two((word >> (8 * B)) & 255)


@triton.jit
def _query_block(q, word, row, wanted, B: tl.constexpr, ROWS: tl.constexpr):
    """([ROWS, 32], fp32 [ROWS]) of dims 32 B .. 32 B + 31; the scale has both operands' units."""
    byte = B * 16 + tl.arange(0, 16)
    packed = tl.load(q + row[:, None] * 64 + byte[None, :], mask=wanted[:, None], other=0)
    return _widened(packed, ROWS), _block_scale(word, B) * (e2m1_unit() * e2m1_unit())


@triton.jit
def _packed_keys(cache, page, STRIDE):
    """Codes of the four blocks u8 [64, 16] and the scale words int32 [64] of a page; zeros for page -1."""
    base, key = cache + page.to(tl.int64) * STRIDE, tl.arange(0, PAGE)
    known = page + tl.zeros_like(key) >= 0  # a block: 3.9's interpreter takes no scalar mask
    rows = known[:, None]
    place = base + key[:, None] * 64 + tl.arange(0, 16)[None, :]
    k0, k1 = tl.load(place, mask=rows, other=0), tl.load(place + 16, mask=rows, other=0)
    k2, k3 = tl.load(place + 32, mask=rows, other=0), tl.load(place + 48, mask=rows, other=0)
    word = tl.load((base + PAGE * 64).to(tl.pointer_type(tl.int32)) + key, mask=known, other=0)
    return k0, k1, k2, k3, word


@triton.jit
def _add_block(score, codes, scale, packed, word, B: tl.constexpr):
    """score [G BH, 64] += block B of 32 dims: an E4M3 product, then both scales."""
    product = tl.dot(codes, tl.trans(_widened(packed, PAGE)))
    return score + product * scale[:, None] * _block_scale(word, B)[None, :]


@triton.jit(do_not_specialize=["TOKENS"])
def logits_fp4_kernel(
    q, q_scale, weights, cache, table, rows, lengths, logits,
    TOKENS, HEADS, TABLE_WIDTH, COLUMNS, STRIDE,
    G: tl.constexpr, BH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As `logits_fp8_kernel`: MXFP4 q, codes u8 [T, H, 64] and scales u8 [T, H, 4], on pages of 68-byte keys."""
    after_producers(PDL)
    leads, request, length = _group(rows, lengths, TOKENS, COLUMNS, G)
    longest = tl.max(length, axis=0)
    if (not leads) | (tl.program_id(1) * PAGE >= longest):
        return
    row, wanted = _head_rows(length, HEADS, G, BH)
    word = tl.load(q_scale.to(tl.pointer_type(tl.int32)) + row, mask=wanted, other=0)
    q0, s0 = _query_block(q, word, row, wanted, 0, G * BH)
    q1, s1 = _query_block(q, word, row, wanted, 1, G * BH)
    q2, s2 = _query_block(q, word, row, wanted, 2, G * BH)
    q3, s3 = _query_block(q, word, row, wanted, 3, G * BH)
    weight = tl.load(weights + row, mask=wanted, other=0.0)
    one = tl.full((PAGE,), 1.0, dtype=tl.float32)
    pages, count = table + request.to(tl.int64) * TABLE_WIDTH, tl.cdiv(longest, PAGE)
    page = tl.load(pages + tl.program_id(1))
    k0, k1, k2, k3, word = _packed_keys(cache, page, STRIDE)
    for at in range(tl.program_id(1), count, tl.num_programs(1)):
        later = at + tl.num_programs(1)
        next_page = tl.load(pages + later, mask=later < count, other=-1)
        n0, n1, n2, n3, next_word = _packed_keys(cache, next_page, STRIDE)  # on their way during the products
        score = tl.zeros((G * BH, PAGE), dtype=tl.float32)
        score = _add_block(score, q0, s0, k0, word, 0)
        score = _add_block(score, q1, s1, k1, word, 1)
        score = _add_block(score, q2, s2, k2, word, 2)
        score = _add_block(score, q3, s3, k3, word, 3)
        _store_logits(logits, score, weight, one, tl.broadcast_to(page >= 0, (PAGE,)), at, length, COLUMNS, G, BH)
        page, k0, k1, k2, k3, word = next_page, n0, n1, n2, n3, next_word
