"""Sparse MLA prefill as a plan: chunks of many tokens, one launch, no part of a token's records apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats import kv_record
from wellhead.ops.checks import expect
from wellhead.ops.sparse_mla.api import Pool, check_pool, supports
from wellhead.ops.sparse_mla.configs import PrefillConfig, choose_prefill_config

ALIGNMENT = 16  # bytes: records are read sixteen at a time, their scales eight


@dataclass(frozen=True)
class SparseMlaPrefill:
    """Attention of `reference.attend_paged` over two pools; probabilities are rounded to bf16 per tile of records.

    run(q bf16 [T, H, 512], window Pool, selected Pool, sink fp32 [H], out bf16 [T, H, 512]) as `api.SparseMla`'s, for
    any number of tokens and without a workspace: a program attends all records of its token. A token without a valid
    record gives 0; a token's bits depend on no other token. Caches start and step on multiples of 16 bytes. Both cache
    dtypes give the same bits. Allocates, synchronises and reads nothing of the device.
    """

    heads: int
    scale: float
    config: PrefillConfig

    def run(self, q: torch.Tensor, window: Pool, selected: Pool, sink: torch.Tensor, out: torch.Tensor) -> None:
        from wellhead.ops.sparse_mla.prefill_kernels import prefill_kernel

        tokens, c = q.shape[0], self.config
        for name, value in (("q", q), ("out", out)):
            expect(name, value, (tokens, self.heads, kv_record.DIM), torch.bfloat16)
        expect("sink", sink, (self.heads,), torch.float32)
        for name, pool in (("window", window), ("selected", selected)):
            check_pool(name, pool, tokens)
            if pool.cache.stride(0) % ALIGNMENT or pool.cache.data_ptr() % ALIGNMENT:
                raise ValueError(
                    f"{name}.cache: pages are {pool.cache.stride(0)} bytes apart; expected a multiple of {ALIGNMENT}, "
                    f"aligned to {ALIGNMENT}"
                )
        if not tokens:
            return
        prefill_kernel[(tokens * -(-self.heads // c.heads),)](
            q, window.cache.view(torch.uint8), window.slots, window.length, selected.cache.view(torch.uint8),
            selected.slots, selected.length, sink, out, self.scale,
            self.heads, window.slots.shape[1], selected.slots.shape[1],
            **constants(c, window.page_size, window.cache.stride(0), selected.page_size, selected.cache.stride(0)),
            num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip


def constants(config: PrefillConfig, page: int, stride: int, other_page: int, other_stride: int) -> dict[str, int]:
    """The constexpr arguments; pages as powers of two, so that a slot of either pool is split without a division."""
    return {
        "WINDOW_SHIFT": page.bit_length() - 1, "WINDOW_STRIDE": stride,
        "EXTRA_SHIFT": other_page.bit_length() - 1, "EXTRA_STRIDE": other_stride,
        "BH": config.heads, "BT": config.records, "KEYS_FIRST": config.keys_first,
    }  # fmt: skip


def plan_prefill(heads: int, scale: float) -> SparseMlaPrefill:
    """Plan for any number of tokens of `heads` heads."""
    why = supports(heads)
    if why is not None:
        raise ValueError(f"sparse MLA cannot be planned: {why}")
    return SparseMlaPrefill(heads, scale, choose_prefill_config(heads))
