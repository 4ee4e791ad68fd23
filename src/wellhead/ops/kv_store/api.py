"""Norm and rotation of queries and of key-value records, and the records' bytes, as a plan of one launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats import kv_record
from wellhead.ops.card import launch
from wellhead.ops.checks import byte_pages, expect, row_stride
from wellhead.ops.kv_store.configs import HEADS, WARPS

MOST_HEADS = 4096


@dataclass(frozen=True)
class Store:
    """For each token: q = turn(norm(q_h)) of every head, and kv_record.write of turn(norm(kv; weight)) at its slot.

    norm is x * rsqrt(mean(x^2) + eps) in fp32, times the weight for kv, rounded to bf16; turn rotates the last 64 dims
    by the fp32 angles position * freqs[i] (`ops.rope`), rounded again; the record's bytes are exactly those that
    `formats.kv_record.write` makes of that bf16 row. run's tensors:

    | q, q_out | bf16 [T, H, 512]; q_out may be q |
    | kv | bf16 [T, 512], rows may lie further apart |
    | kv_out | None, or bf16 [T, 512] that receives the bf16 row before it becomes a record |
    | weight | bf16 [512] |
    | cache | packed pages [pages, stride] of uint8, float8_e4m3fn or int8: the same bytes |
    | slots | i64 [T], distinct, page * page_size + offset below the cache's end; negative: no record |
    | positions, freqs | i64 [T] with angles from 0 up to 2^20; fp32 [32] |

    Offsets are 64-bit. T may be 0. A row's bits depend on that row alone; one that has a slot must be finite.
    Allocates, synchronises and reads nothing of the device.
    """

    heads: int
    page_size: int
    eps: float

    def run(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        weight: torch.Tensor,
        cache: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        freqs: torch.Tensor,
        q_out: torch.Tensor,
        kv_out: torch.Tensor | None = None,
    ) -> None:
        from wellhead.ops.kv_store import kernels

        tokens = kv.shape[0]
        stride = row_stride("kv", kv, kv_record.DIM, torch.bfloat16)
        for name, value in (("q", q), ("q_out", q_out)):
            expect(name, value, (tokens, self.heads, kv_record.DIM), torch.bfloat16)
        if kv_out is not None:
            expect("kv_out", kv_out, (tokens, kv_record.DIM), torch.bfloat16)
        expect("weight", weight, (kv_record.DIM,), torch.bfloat16)
        expect("slots", slots, (tokens,), torch.int64)
        expect("positions", positions, (tokens,), torch.int64)
        expect("freqs", freqs, (32,), torch.float32)
        if (found := kv_record.LAYOUT.page_size(cache)) != self.page_size:
            raise ValueError(f"cache has pages of {found} records; expected {self.page_size} records")
        pages = byte_pages("cache", cache, kv_record.page_stride(self.page_size), f"{self.page_size} packed records")
        if tokens:
            kernels.kv_store_kernel[(tokens, 1 + -(-self.heads // HEADS))](
                q, q_out, kv, kv_out, weight, pages, slots, positions, freqs, self.eps, self.heads,
                stride, **constants(self.page_size, pages.stride(0)), num_warps=WARPS, **launch(),
            )  # fmt: skip


def constants(page_size: int, stride: int) -> dict[str, int]:
    """The constexpr arguments: the page is a constant so that a slot is split without a division."""
    return {"PAGE": page_size, "STRIDE": stride, "BH": HEADS}


def supports(heads: int, page_size: int) -> str | None:
    """None, or why such a step cannot run."""
    if page_size < 1 or page_size & (page_size - 1):
        return f"page_size={page_size}: a power of two"
    return None if 1 <= heads <= MOST_HEADS else f"heads={heads}: 1 to {MOST_HEADS}"


def plan(heads: int, page_size: int, eps: float) -> Store:
    """`heads` on this rank. ValueError names what is supported."""
    why = supports(heads, page_size)
    if why is not None:
        raise ValueError(f"kv_store cannot be planned: {why}")
    if not eps >= 0:
        raise ValueError(f"kv_store cannot be planned: eps={eps}; expected 0 or more")
    return Store(heads, page_size, eps)
