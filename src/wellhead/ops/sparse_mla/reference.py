"""Sparse multi-query latent attention: every query head reads the same 512-wide records, keys and values in one.

Per head, with S_i = scale * q . k_i over the valid records and the learned sink s (no value, not scaled):
m = max_i S_i, o = sum_i e^(S_i - m) k_i / (sum_i e^(S_i - m) + e^(s - m)).
Source: DeepSeek-V4 reference inference (sparse_attn): probabilities are rounded to the query's dtype before the product
with the values, the denominator is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from wellhead.ops.kv_store import reference as kv_store

GATHER_BYTES = 4 << 20
TILE = 64


def attend(
    q: torch.Tensor, kv: torch.Tensor, valid: torch.Tensor, sink: torch.Tensor, scale: float
) -> torch.Tensor:
    """q [T, H, D], kv [T, K, D] records gathered for each token, valid bool [T, K], sink fp32 [H] -> [T, H, D].

    Invalid records contribute exactly nothing, whatever they hold; a token without a valid record gives 0.
    """
    return _attend_clean(q, torch.where(valid.unsqueeze(-1), kv, 0).float(), valid, sink, scale)


def _attend_clean(
    q: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, sink: torch.Tensor, scale: float
) -> torch.Tensor:
    # keys fp32, zero where invalid: a zero probability times NaN would be NaN
    count = keys.shape[1]
    if not count:
        return torch.zeros_like(q)
    scores = torch.einsum("thd,tkd->thk", q.float(), keys) * scale
    scores = scores.masked_fill(~valid.unsqueeze(1), float("-inf"))
    peak = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    # the sink is one more column without a value, in a tile of its own so that no loop ends in a partial
    # vector
    column = F.pad(sink.float().unsqueeze(-1).expand_as(peak), (0, TILE - 1), value=float("-inf"))
    p = torch.exp(torch.cat((scores, column), dim=-1) - peak)
    weighed = torch.einsum("thk,tkd->thd", p[..., :count].to(q.dtype).float(), keys)
    return (weighed / p.sum(-1, keepdim=True)).to(q.dtype)


def attend_paged(
    q: torch.Tensor, pools: Sequence[tuple[torch.Tensor, torch.Tensor]], sink: torch.Tensor, scale: float
) -> torch.Tensor:
    """`attend` over records named by slot: pools are (cache, slots int64 [T, K_i]) pairs, one softmax over all of them.

    A slot is page * records-per-page + offset; -1 contributes nothing, whatever the cache holds. Trailing -1
    columns are dropped token by token in tiles of 64, so a token's sums do not depend on its batch. Tokens
    are taken in slices that keep the gathered records below a fixed number of bytes.
    """
    out = torch.empty_like(q)
    for widths, tokens in _same_width(pools):
        step = max(1, GATHER_BYTES // max(1, 4 * q.shape[-1] * sum(widths)))
        for part in tokens.split(step):
            chosen = [_columns(slots[part], width) for (_, slots), width in zip(pools, widths, strict=True)]
            keys = _gather([cache for cache, _ in pools], chosen)
            out[part] = _attend_clean(q[part], keys, torch.cat(chosen, 1) >= 0, sink, scale)
    return out


def _same_width(
    pools: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Groups of tokens (int64 indices) that use equally many columns of each pool, in whole tiles."""
    device = pools[0][1].device
    used = [  # a column of zeros in front: a pool may have none
        F.pad((slots >= 0) * torch.arange(1, slots.shape[1] + 1, device=device), (1, 0)).amax(1)
        for _, slots in pools
    ]
    tiles = torch.stack([(count + TILE - 1) // TILE * TILE for count in used], 1)
    if tiles.shape[0] == 1:
        yield tiles[0].tolist(), torch.zeros(1, dtype=torch.int64, device=device)
        return
    distinct, group = tiles.unique(dim=0, return_inverse=True)
    for index, widths in enumerate(distinct.tolist()):
        yield widths, (group == index).nonzero().squeeze(-1)


def _columns(slots: torch.Tensor, width: int) -> torch.Tensor:
    return F.pad(slots[:, :width], (0, max(0, width - slots.shape[1])), value=-1)


def _gather(caches: Sequence[torch.Tensor], chosen: Sequence[torch.Tensor]) -> torch.Tensor:
    """fp32 [t, sum K_i, D] records, zero for -1. Neighbouring queries share most of theirs: each is unpacked once."""
    tables, places, known = [], [], 0
    if chosen[0].shape[0] == 1:
        records = [kv_store.read(cache, slots) for cache, slots in zip(caches, chosen, strict=True)]
        return torch.cat(records, 1).float()
    for cache, slots in zip(caches, chosen, strict=True):
        unique, place = slots.unique(return_inverse=True)
        tables.append(kv_store.read(cache, unique).float())
        places.append(place + known)
        known += unique.shape[0]
    place = torch.cat(places, 1)
    return torch.cat(tables).index_select(0, place.flatten()).unflatten(0, place.shape)
