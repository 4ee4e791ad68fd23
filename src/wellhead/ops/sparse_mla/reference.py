"""Sparse multi-query latent attention: every query head reads the same 512-wide records, keys and values in one.

Per head, with S_i = scale * q . k_i over the valid records and the learned sink s (no value, not scaled):
m = max_i S_i, o = sum_i e^(S_i - m) k_i / (sum_i e^(S_i - m) + e^(s - m)).
Source: DeepSeek-V4 reference inference (sparse_attn): probabilities are rounded to the query's dtype before the
product with the values, the denominator is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wellhead.ops.kv_store import reference as kv_store

GATHER_BYTES = 16 << 20


def attend(q: torch.Tensor, kv: torch.Tensor, valid: torch.Tensor, sink: torch.Tensor, scale: float) -> torch.Tensor:
    """q [T, H, D], kv [T, K, D] records gathered for each token, valid bool [T, K], sink fp32 [H] -> [T, H, D].

    Invalid records contribute exactly nothing, whatever they hold; a token without a valid record gives 0.
    """
    keys = torch.where(valid.unsqueeze(-1), kv, 0).float()
    scores = torch.einsum("thd,tkd->thk", q.float(), keys) * scale
    return _combine(scores, valid.unsqueeze(1), sink, q.dtype, lambda p: torch.einsum("thk,tkd->thd", p, keys))


def attend_shared(
    q: torch.Tensor, kv: torch.Tensor, valid: torch.Tensor, sink: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same with one set of records for all queries of a sequence: q [B, S, H, D], kv [B, K, D], valid [B, S, K]."""
    scores = torch.einsum("bshd,bkd->bshk", q, kv).float() * scale
    return _combine(
        scores, valid.unsqueeze(-2), sink, q.dtype, lambda p: torch.einsum("bshk,bkd->bshd", p.to(q.dtype), kv)
    )


def _combine(scores, valid, sink, dtype, weigh_values):  # type: ignore[no-untyped-def]
    scores = scores.masked_fill(~valid, float("-inf"))
    peak = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    p = torch.exp(scores - peak)
    denominator = p.sum(-1, keepdim=True) + torch.exp(sink.float().unsqueeze(-1) - peak)
    out = weigh_values(p.to(dtype).float()) / denominator
    return out.to(dtype)


def attend_paged(
    q: torch.Tensor, pools: Sequence[tuple[torch.Tensor, torch.Tensor]], sink: torch.Tensor, scale: float
) -> torch.Tensor:
    """`attend` over records named by slot: pools are (cache, slots int64 [T, K_i]) pairs, one softmax over all of them.

    A slot is page * records-per-page + offset; -1 contributes nothing, whatever the cache holds. Tokens are taken in
    slices that keep the gathered records below a fixed number of bytes.
    """
    out = torch.empty_like(q)
    bytes_per_token = max(1, 4 * q.shape[-1] * sum(slots.shape[1] for _, slots in pools))
    step = max(1, GATHER_BYTES // bytes_per_token)
    for low in range(0, q.shape[0], step):
        part = slice(low, low + step)
        records = torch.cat([_gather(cache, slots[part]) for cache, slots in pools], dim=1)
        valid = torch.cat([slots[part] >= 0 for _, slots in pools], dim=1)
        out[part] = attend(q[part], records, valid, sink, scale)
    return out


def _gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    # neighbouring queries share most of their records: unpack each once
    unique, where = slots.clamp_min(0).unique(return_inverse=True)
    return kv_store.read(cache, unique)[where]
