"""Paged records: where a token's record lives, writing it and reading it back.

One page table serves every pool of a request. A logical page is 256 tokens; a pool that keeps one record per `ratio`
tokens holds 256 / ratio records of it, so record n of a request is row n % P of the page table's entry n // P. A cache
is either packed (584-byte records, `formats.kv_record`) or plain: [pages, P, D] of a float dtype.
"""

from __future__ import annotations

import torch

from wellhead.formats import kv_record


def slots(
    page_table: torch.Tensor, rows: torch.Tensor, records: torch.Tensor, page_size: int
) -> torch.Tensor:
    """int64 slot = page * page_size + offset of records [T, ...] of the requests rows [T]; a negative record gives -1.

    page_table int [R, pages]; a record beyond the table's width is the caller's error.
    """
    wide = records.long()
    rows = rows.reshape(rows.shape + (1,) * (wide.dim() - 1)).expand_as(wide)
    known = wide.clamp_min(0)
    page = page_table[rows, torch.div(known, page_size, rounding_mode="floor")].long()
    return torch.where(wide >= 0, page * page_size + known % page_size, -1)


def write(cache: torch.Tensor, slots: torch.Tensor, records: torch.Tensor) -> None:
    """Store records [N, D] at distinct slots [N]; slot -1 is skipped. A packed cache rounds to bf16, then to E4M3."""
    if not slots.numel():
        return
    if is_plain(cache):
        kept = slots >= 0
        cache.view(-1, cache.shape[-1])[slots[kept]] = records[kept].to(cache.dtype)
    else:
        kv_record.write(cache, slots, records)


def read(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Records of slots [...] as stored: [..., D] in a plain cache's dtype, bf16 [..., 512] of a packed one; -1 gives 0.
    """
    if not is_plain(cache):
        return kv_record.read(cache, slots)
    records = cache.view(-1, cache.shape[-1])[slots.clamp_min(0)]
    return records.masked_fill((slots < 0).unsqueeze(-1), 0)


def is_plain(cache: torch.Tensor) -> bool:
    """Whether a cache holds float rows [pages, P, D] rather than packed bytes [pages, page bytes]."""
    return cache.dim() == 3
