"""Routing: affinities and the choice of experts in one launch, for one token with the lists of who gets it.

The last program to finish a block of tokens makes their choice. Which one that is does not matter: it reads what
all of them wrote, in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers, ask
from wellhead.ops.row_sums import near_sums
from wellhead.ops.topk.kernels import ordered_key

SUM_FLOOR = tl.constexpr(1e-20)


@triton.jit
def affinity(z):
    """sqrt(softplus(z)) in fp32, log1p by its area-tangent series so that small affinities keep their digits."""
    t = tl.exp(-tl.abs(z))
    r = t / (2 + t)
    q = r * r
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.sqrt(tl.maximum(z, 0.0) + 2 * r * series)


@triton.jit
def store_choice(
    ids_ptr, weights_ptr, owner_ptr, t, live, ids, chosen, scale, K: tl.constexpr, K_PAD: tl.constexpr
):  # fmt: skip
    """w = s / (sum s + 1e-20) * scale for the chosen affinities [tokens, K_PAD]; id -1 has none and no weight.

    A token whose owner is negative is padding: its ids are -1.
    """
    rank = tl.arange(0, K_PAD)
    if owner_ptr is not None:
        owner = tl.load(owner_ptr + t, mask=live, other=-1)
        ids = tl.where((owner >= 0)[:, None], ids, -1)
    chosen = tl.where(ids >= 0, chosen, 0.0)
    weights = chosen / (tl.sum(chosen, 1) + SUM_FLOOR)[:, None] * scale
    at = t[:, None].to(tl.int64) * K + rank[None, :]
    keep = live[:, None] & (rank < K)[None, :]
    tl.store(ids_ptr + at, ids, mask=keep)
    tl.store(weights_ptr + at, weights, mask=keep)


@triton.jit
def list_one(ids_ptr, slots_ptr, block_expert_ptr, first_expert, experts, K: tl.constexpr, K_PAD: tl.constexpr):
    """The lists of one token in blocks of one: its places in order, each with its expert among `experts` or -1."""
    rank = tl.arange(0, K_PAD)
    tl.debug_barrier()  # the ids were stored by other threads
    local = tl.load(ids_ptr + rank, mask=rank < K, other=-1) - first_expert
    mine = (local >= 0) & (local < experts)
    tl.store(slots_ptr + rank, tl.where(mine, rank, -1), mask=rank < K)
    tl.store(block_expert_ptr + rank, tl.where(mine, local, -1), mask=rank < K)


@triton.jit
def choose_best(
    scores_ptr, bias_ptr, owner_ptr, ids_ptr, weights_ptr, t, live, scale,
    E: tl.constexpr, E_PAD: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr,
):  # fmt: skip
    """The K best biased affinities of some tokens, best first, equal ones in order of expert; NaN is best."""
    expert, rank = tl.arange(0, E_PAD), tl.arange(0, K_PAD)
    row = scores_ptr + t[:, None].to(tl.int64) * E
    mask = live[:, None] & (expert < E)[None, :]
    score = tl.load(row + expert[None, :], mask=mask, other=0.0, cache_modifier=".cg")
    bias = tl.load(bias_ptr + expert, mask=expert < E, other=0.0)
    # one word orders by key, then by expert, the first one highest; no number has key 0
    word = (ordered_key(score + bias[None, :]).to(tl.int64) << 16) | (0xFFFF - expert).to(tl.int64)[None, :]
    word = tl.where(mask, word, 0)
    ids = tl.full([t.shape[0], K_PAD], -1, tl.int32)
    for j in tl.static_range(K):
        best = tl.max(word, 1)
        ids = tl.where(rank[None, :] == j, (0xFFFF - (best & 0xFFFF)).to(tl.int32)[:, None], ids)
        word = tl.where(word == best[:, None], 0, word)
    inside = live[:, None] & (ids >= 0)
    chosen = tl.load(row + ids, mask=inside, other=0.0, cache_modifier=".cg")
    store_choice(ids_ptr, weights_ptr, owner_ptr, t, live, ids, chosen, scale, K, K_PAD)


@triton.jit
def _product(x_ptr, x_stride, gate_ptr, t, e, tokens, D, E, BT: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr):
    """fp32 [BT, BE] = x gate^T of some tokens and experts, on tensor cores."""
    d = tl.arange(0, BD)
    x_row = x_ptr + t[:, None].to(tl.int64) * x_stride
    gate_row = gate_ptr + e[None, :].to(tl.int64) * D
    z = tl.zeros([BT, BE], tl.float32)
    for first in range(0, D, BD):
        x = tl.load(x_row + (first + d)[None, :], mask=(t < tokens)[:, None], other=0.0)
        gate = tl.load(gate_row + (first + d)[:, None], mask=(e < E)[None, :], other=0.0)
        z = tl.dot(x, gate, z)
    return z


@triton.jit
def _one_product(x_ptr, gate_ptr, e, D, E, BE: tl.constexpr, BD: tl.constexpr, PDL: tl.constexpr):
    """fp32 [1, BE] of one token on CUDA cores. All weights at once (BD >= D): a loop would wait for memory that the
    shared expert keeps busy, turn by turn.
    """
    d = tl.arange(0, BD)
    there = (e < E)[:, None] & (d < D)[None, :]
    tile = tl.load(gate_ptr + e[:, None].to(tl.int64) * D + d[None, :], mask=there, other=0.0)
    after_producers(PDL)
    x = tl.load(x_ptr + d, mask=d < D, other=0.0)
    return tl.sum(near_sums(tile.to(tl.float32) * x.to(tl.float32)[None, :], 8), 1)[None, :]


# The number of tokens changes from call to call: no variant of its own for 1 or for a multiple of 16.
@triton.jit(do_not_specialize=["tokens", "first_expert", "experts"])
def route(
    x_ptr, x_stride, gate_ptr, bias_ptr, owner_ptr, scores_ptr, arrived_ptr, ids_ptr, weights_ptr,
    slots_ptr, block_expert_ptr, first_expert, experts, tokens, scale,
    D: tl.constexpr, E: tl.constexpr, E_PAD: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, CHOOSE_T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """scores [T, E] = affinity(x gate^T), then ids and weights [T, K] by the top K of scores + bias.

    x bf16 [T, D], gate bf16 [E, D] contiguous, products summed in fp32; owner int64 [T] or None. arrived int32 [blocks
    of tokens] is zero before and after. With slots_ptr the lists of one token are written too (`list_one`).
    Grid (blocks of experts, blocks of tokens).
    """
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    if BLOCK_T == 1:
        if tl.program_id(0) == 0:
            ask(bias_ptr + tl.minimum(tl.arange(0, E_PAD), E - 1))  # for the choice at the end
        z = _one_product(x_ptr, gate_ptr, e, D, E, BLOCK_E, BLOCK_D, PDL)
    else:
        after_producers(PDL)
        z = _product(x_ptr, x_stride, gate_ptr, t, e, tokens, D, E, BLOCK_T, BLOCK_E, BLOCK_D)
    mask = (t < tokens)[:, None] & (e < E)[None, :]
    tl.store(scores_ptr + t[:, None].to(tl.int64) * E + e[None, :], affinity(z), mask=mask)

    tl.debug_barrier()  # every thread's scores are written before one thread says so
    before = tl.atomic_add(arrived_ptr + tl.program_id(1), 1, sem="acq_rel")
    if before == tl.num_programs(0) - 1:
        tl.store(arrived_ptr + tl.program_id(1), 0)
        for first in range(0, BLOCK_T, CHOOSE_T):
            some = tl.program_id(1) * BLOCK_T + first + tl.arange(0, CHOOSE_T)
            choose_best(
                scores_ptr, bias_ptr, owner_ptr, ids_ptr, weights_ptr, some, some < tokens, scale, E, E_PAD, K, K_PAD
            )  # fmt: skip
        if slots_ptr is not None:
            list_one(ids_ptr, slots_ptr, block_expert_ptr, first_expert, experts, K, K_PAD)


@triton.jit(do_not_specialize=["first_expert", "experts"])
def route_by_token(
    x_ptr, x_stride, gate_ptr, table_ptr, token_ptr, owner_ptr, ids_ptr, weights_ptr,
    slots_ptr, block_expert_ptr, first_expert, experts, vocabulary, scale,
    D: tl.constexpr, E: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """ids = table[token id]; only the affinities of those experts are computed. One program a token.

    A token id outside [0, vocabulary), or an expert outside [0, E), is nobody: id -1, weight 0, nothing read.
    """
    after_producers(PDL)
    t = tl.program_id(0).to(tl.int64)
    rank, d = tl.arange(0, K_PAD), tl.arange(0, BLOCK_D)
    token = tl.load(token_ptr + t).to(tl.int64)
    known = (token >= 0) & (token < vocabulary)
    ids = tl.load(table_ptr + token * K + rank, mask=known & (rank < K), other=-1).to(tl.int32)
    real = (ids >= 0) & (ids < E)
    ids = tl.where(real, ids, -1)
    gate_row = gate_ptr + ids[:, None].to(tl.int64) * D
    z = tl.zeros([K_PAD, BLOCK_D], tl.float32)
    for first in range(0, D, BLOCK_D):
        x = tl.load(x_ptr + t * x_stride + first + d).to(tl.float32)
        gate = tl.load(gate_row + (first + d)[None, :], mask=real[:, None], other=0.0).to(tl.float32)
        z += x[None, :] * gate
    chosen = affinity(tl.sum(z, 1))
    one = tl.arange(0, 1)
    store_choice(ids_ptr, weights_ptr, owner_ptr, t + one, one == 0, ids[None, :], chosen[None, :], scale, K, K_PAD)
    if slots_ptr is not None:
        list_one(ids_ptr, slots_ptr, block_expert_ptr, first_expert, experts, K, K_PAD)
