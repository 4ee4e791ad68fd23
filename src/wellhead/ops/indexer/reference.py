"""Lightning indexer: which compressed entries a query may attend.

I[p, c] = sum_h relu(q[p, h] . k[c]) * w[p, h]; relu comes before the (possibly negative) weight.
Source: DeepSeek-V4 reference inference (Indexer). Scores are fp32.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from wellhead.formats import e4m3, index_key, mxfp4
from wellhead.formats.paged import PagedLayout
from wellhead.ops.kv_store import reference as kv_store

SCORE_BYTES = 64 << 20
KEY_TILE = 64


@lru_cache(maxsize=8)
def hadamard(dim: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """fp32 Sylvester matrix H / sqrt(dim), dim a power of two; orthogonal and symmetric. Shared, do not write to it."""
    if dim < 1 or dim & (dim - 1):
        raise ValueError(f"a Sylvester Hadamard matrix needs a power of two, got {dim}")
    h = torch.ones(1, 1, device=device)
    while h.shape[0] < dim:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
    return h * dim**-0.5


def rotate(x: torch.Tensor) -> torch.Tensor:
    """y = x H over the last dimension, fp32 inside, rounded to x's dtype: spreads outliers before quantisation."""
    return (x.float() @ hadamard(x.shape[-1], x.device)).to(x.dtype)


def logits(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """q [..., T, H, D], k [..., C, D], weights fp32 [..., T, H] -> fp32 [..., T, C]."""
    scores = torch.relu(torch.einsum("...thd,...cd->...thc", q.float(), k.float()))
    return (scores * weights.float().unsqueeze(-1)).sum(-2)


def write_keys(cache: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor) -> None:
    """Store keys [N, D] at distinct slots [N] (-1 skipped) in the cache's own format: plain rows, FP8 or FP4 pages."""
    if not slots.numel():
        return
    if kv_store.is_plain(cache):
        kv_store.write(cache, slots, keys)
    elif _layout(cache) is index_key.FP8:
        index_key.write_fp8(cache, slots, keys)
    else:
        index_key.write_fp4(cache, slots, keys)


def read_keys(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """fp32 [..., D] keys of slots [...] as stored; -1 gives 0."""
    if kv_store.is_plain(cache):
        return kv_store.read(cache, slots).float()
    return (index_key.read_fp8 if _layout(cache) is index_key.FP8 else index_key.read_fp4)(cache, slots)


def round_query(q: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    """fp32 q [T, H, D] as the cache's kernels see it: per head FP8 or per 32 MXFP4; a plain cache leaves it alone."""
    if kv_store.is_plain(cache):
        return q.float()
    if _layout(cache) is index_key.FP8:
        codes, scale = index_key.quantize_fp8(q)
        return e4m3.decode(codes) * scale.unsqueeze(-1)
    return mxfp4.round_blocks(q.float())


def sliced_logits(q: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`logits` of one request: q [T, H, D] over keys fp32 [C, D], in slices that bound the [t, H, C] intermediate.

    Keys that a query may not see are scored too; the caller masks them.
    """
    entries = keys.shape[0]
    keys = F.pad(
        keys, (0, 0, 0, -entries % KEY_TILE)
    )  # whole tiles: a score does not depend on how many keys follow
    step = max(1, SCORE_BYTES // max(1, 4 * q.shape[1] * keys.shape[0]))
    parts = [logits(q[i : i + step], keys, weights[i : i + step]) for i in range(0, q.shape[0], step)]
    return torch.cat(parts)[:, :entries] if parts else weights.new_zeros(0, entries)


def paged_logits(
    q: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """fp32 [T, C] logits of one request's q [T, H, D] over its keys at slots [C] of a paged cache."""
    return sliced_logits(q, read_keys(cache, slots), weights)


def _layout(cache: torch.Tensor) -> PagedLayout:
    widths = {layout.page_stride(index_key.PAGE_SIZE): layout for layout in (index_key.FP8, index_key.FP4)}
    if cache.dim() == 2 and cache.shape[1] in widths:
        return widths[cache.shape[1]]
    fp8, fp4 = widths
    raise ValueError(
        f"an index-key cache of {index_key.PAGE_SIZE} keys a page is [pages, P, D] floats, or bytes "
        f"[pages, {fp8}] (FP8) or [pages, {fp4}] (FP4), got shape {tuple(cache.shape)}"
    )
