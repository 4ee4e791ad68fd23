"""The compressor's decode step as a plan: one launch for the running state, the entry and its record."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats import index_key, kv_record
from wellhead.formats.paged import PagedLayout
from wellhead.ops.card import launch
from wellhead.ops.checks import byte_pages, expect
from wellhead.ops.compressor.configs import Config, choose_config
from wellhead.ops.compressor.reference import overlap, ring_rows
from wellhead.ops.indexer.api import LAYOUTS, key_pages


@dataclass(frozen=True)
class Decode:
    """`reference.advance`, RMS norm and rotation for at most one token a request.

    run(projected fp32 [T, 2W], ape fp32 [ratio, W], positions int32 or int64 [T], state_slots int32 or int64 [T], state
    fp32 [slots, ring, 2W], norm bf16 or fp32 [D], cos, sin fp32 [T, 32], slots int64 [T], out). W = overlap * D; a row
    of `projected` is (wkv x, wgate x), the position's ape is added here. state_slots are distinct; -1 leaves a token
    out (padding). cos and sin belong to the block's first position. A token that ends no block only leaves its row.

    out is bytes [pages, stride], where the entry goes to slots[t] (-1: nowhere): of a plan with a page size the packed
    cache, as `kv_record.write` rounds it; with `keys` pages of 64 index keys of that layout, for which it is turned by
    the Hadamard matrix (`indexer.reference.rotate`) first. The pooled entry is rounded to bf16, the normed one again,
    the rotated and the turned one again. Allocates, synchronises and reads nothing of the device.
    """

    ratio: int
    dim: int
    eps: float
    page_size: int
    keys: PagedLayout | None
    config: Config

    def run(
        self,
        projected: torch.Tensor,
        ape: torch.Tensor,
        positions: torch.Tensor,
        state_slots: torch.Tensor,
        state: torch.Tensor,
        norm: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slots: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        from wellhead.ops.compressor.kernels import advance_kernel

        tokens, width = projected.shape[0], overlap(self.ratio) * self.dim
        expect("projected", projected, (tokens, 2 * width), torch.float32)
        expect("ape", ape, (self.ratio, width), torch.float32)
        expect("positions", positions, (tokens,), torch.int32, torch.int64)
        expect("state_slots", state_slots, (tokens,), torch.int32, torch.int64)
        expect("state", state, (state.shape[0], ring_rows(self.ratio), 2 * width), torch.float32)
        expect("norm", norm, (self.dim,), torch.bfloat16, torch.float32)
        expect("cos", cos, (tokens, 32), torch.float32)
        expect("sin", sin, (tokens, 32), torch.float32)
        expect("slots", slots, (tokens,), torch.int64)
        out = check_out(out, self.page_size, self.keys)
        if not tokens:
            return
        c = self.config
        advance_kernel[(tokens,)](
            projected, ape, positions, state_slots, state, norm, cos, sin, slots, out, self.eps, out.stride(0),
            **constants(self.ratio, self.dim, self.page_size, self.keys, c.rows), num_warps=c.num_warps,
            num_stages=c.num_stages, **launch(),
        )  # fmt: skip


def constants(ratio: int, dim: int, page_size: int, keys: PagedLayout | None, rows: int) -> dict[str, int]:
    """The constexpr arguments; `rows` pooled at a time."""
    return {
        "D": dim, "RATIO": ratio, "OVERLAP": overlap(ratio), "RING": ring_rows(ratio), "ROWS": rows,
        "PAGE": page_size, "KEYS": 0 if keys is None else 8 * keys.data_bytes // dim,
    }  # fmt: skip


def supports(ratio: int, dim: int) -> str | None:
    """None, or why these sizes cannot run."""
    if ratio not in (4, 128):
        return f"ratio={ratio}: 4 or 128"
    return None if dim in (128, kv_record.DIM) else f"dim={dim}: 128 or {kv_record.DIM}"


def check_plan(ratio: int, dim: int, page_size: int, keys: PagedLayout | None) -> None:
    """ValueError, naming what can be, unless these sizes can be planned."""
    why = supports(ratio, dim)
    if why is None and keys is None and (dim != kv_record.DIM or page_size < 1 or page_size & (page_size - 1)):
        why = f"page_size={page_size}, dim={dim}, no keys: a power of two of records of {kv_record.DIM}"
    if keys is not None and (keys not in LAYOUTS.values() or dim != index_key.DIM or page_size):
        known = " or ".join(repr(layout.name) for layout in LAYOUTS.values())
        why = why or f"keys={keys.name!r}, dim={dim}, page_size={page_size}: {known} of {index_key.DIM}, page_size=0"
    if why is not None:
        raise ValueError(f"the compressor cannot be planned: {why}")


def plan_decode(ratio: int, dim: int, eps: float, *, page_size: int = 0, keys: PagedLayout | None = None) -> Decode:
    """Plan for any number of requests; needs no workspace. Gives packed records with a page size, index keys of one of
    index_key's layouts with `keys`.
    """
    check_plan(ratio, dim, page_size, keys)
    return Decode(ratio, dim, eps, page_size, keys, choose_config(ratio, dim))


def check_out(out: torch.Tensor, page_size: int, keys: PagedLayout | None) -> torch.Tensor:
    """What the kernels write to, after checking that `out` is what was planned."""
    if keys is not None:
        return key_pages(keys, out)
    return byte_pages("out", out, kv_record.page_stride(page_size), f"{page_size} packed records")
