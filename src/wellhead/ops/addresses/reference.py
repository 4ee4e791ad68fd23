"""A step's addresses: which slot of a pool each record and entry has, through its request's page table.

Entry e of a pool with n entries a page lies in slot table[e // n] * n + e % n; with pages of P tokens a pool of ratio r
has n = P / r. Position p sees entries 0 .. (p + 1) // r - 1 of ratio r, and ends entry p // r if (p + 1) mod r = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from wellhead.ops.rope.reference import tables as rotation


class Window(NamedTuple):
    """write_slots int64 [T], of each token's own record; window_slots int64 [T, window], of the records up to it, the
    oldest first; tables i32 [T, pages], each token's row of the page table.
    """

    write_slots: torch.Tensor
    window_slots: torch.Tensor
    tables: torch.Tensor


class Entries(NamedTuple):
    """Of one ratio: visible i32 [T], entries a token sees; chosen i32 [T], at most `most` of them; entry_slots int64
    [E] of the entries that end here, with cos and sin fp32 [E, 32] at their first positions; slots int64 [T, width] of
    all visible entries (width 0 where nobody wants them).
    """

    visible: torch.Tensor
    chosen: torch.Tensor
    entry_slots: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    slots: torch.Tensor


def slots_of(entries: torch.Tensor, tables: torch.Tensor, owners: torch.Tensor, size: int) -> torch.Tensor:
    """int64 slots of entries [T, n] through tables [T, pages]; -1 for a negative entry, no page, or padding."""
    place = entries.clamp_min(0)
    page = tables.gather(1, (place // size).clamp_max(tables.shape[1] - 1)).to(torch.int64)
    there = (entries >= 0) & (place // size < tables.shape[1]) & (page >= 0) & (owners >= 0).unsqueeze(1)
    return torch.where(there, page * size + place % size, -1)


def window(
    positions: torch.Tensor, rows: torch.Tensor, owners: torch.Tensor, page_table: torch.Tensor,
    window_table: torch.Tensor, size: int, page: int,
) -> Window:  # fmt: skip
    """Of T tokens: positions, owners int64 [T] (an owner below 0 is padding), rows i32 [T] of the tables [R, pages]."""
    back = torch.arange(1 - size, 1, device=positions.device)
    slots = slots_of(positions.unsqueeze(1) + back, window_table[rows.long()], owners, page)
    return Window(slots[:, -1].contiguous(), slots, page_table[rows.long()])


def entries(
    positions: torch.Tensor, rows: torch.Tensor, owners: torch.Tensor, page_table: torch.Tensor, freqs: torch.Tensor,
    ends: torch.Tensor | None, ratio: int, page: int, most: int, width: int,
) -> Entries:  # fmt: skip
    """ends [E]: the last tokens of the blocks that end here, -1 fills; None: every token may end one (E = T)."""
    device, size, tables = positions.device, page // ratio, page_table[rows.long()]
    visible = torch.where(owners >= 0, (positions + 1) // ratio, 0)
    last = torch.arange(len(positions), device=device) if ends is None else ends.long()
    token = last.clamp_min(0)
    there = (last >= 0) & (owners[token] >= 0) & ((positions[token] + 1) % ratio == 0)
    entry = torch.where(there, positions[token] // ratio, -1)
    entry_slots = slots_of(entry.unsqueeze(1), tables[token], owners[token], size).squeeze(1)
    cos, sin = rotation(entry.clamp_min(0) * ratio, freqs)
    every = torch.arange(width, device=device).expand(len(positions), -1)
    slots = slots_of(torch.where(every < visible.unsqueeze(1), every, -1), tables, owners, size)
    visible = visible.to(torch.int32)
    return Entries(visible, visible.clamp_max(most), entry_slots, cos, sin, slots)
