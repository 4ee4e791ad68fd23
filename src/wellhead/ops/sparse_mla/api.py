"""Sparse MLA as a plan: window and selected records and the sink, one launch and, where split, a merge."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats import kv_record
from wellhead.ops import scratch
from wellhead.ops.card import launch
from wellhead.ops.checks import byte_pages, expect
from wellhead.ops.sparse_mla.configs import Config, choose_config

MERGE_WARPS = 4  # half a row of every part lies in registers: at most 64 a thread


@dataclass(frozen=True)
class Pool:
    """A paged cache of packed records [pages, stride] and, for each token, the slots it attends.

    slots int32 or int64 [T, width] (-1: none), of which only the first length i32 [T] are looked at. A slot is
    page * page_size + offset; pages past 2^31 / stride are addressed in 64 bits.
    """

    cache: torch.Tensor
    page_size: int
    slots: torch.Tensor
    length: torch.Tensor


@dataclass(frozen=True)
class SparseMla:
    """Attention of `reference.attend_paged` over two pools; probabilities are rounded to bf16 per tile of records.

    run(q bf16 [T, H, 512], window Pool, selected Pool, sink fp32 [H], out bf16 [T, H, 512]). A token without a valid
    record gives 0. All cache dtypes give the same bits. Allocates, synchronises and reads nothing of the device.
    A plan that `turns` may be given positions i64 [T] and freqs fp32 [32]: out is then what `ops.rope` makes of it.
    """

    tokens: int
    heads: int
    scale: float
    config: Config
    part: torch.Tensor  # fp32 [tokens, splits, H, 512]
    part_stat: torch.Tensor  # fp32 [tokens, splits, H, 2]

    @property
    def turns(self) -> bool:
        """Whether heads may be turned back on the way out: where parts are merged."""
        return self.config.splits > 1

    def run(
        self, q: torch.Tensor, window: Pool, selected: Pool, sink: torch.Tensor, out: torch.Tensor,
        positions: torch.Tensor | None = None, freqs: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        from wellhead.ops.sparse_mla import kernels

        tokens, c = q.shape[0], self.config
        if tokens > self.tokens:
            raise ValueError(f"q has {tokens} tokens; the plan was made for at most {self.tokens}")
        for name, value in (("q", q), ("out", out)):
            expect(name, value, (tokens, self.heads, kv_record.DIM), torch.bfloat16)
        expect("sink", sink, (self.heads,), torch.float32)
        near, far = _check("window", window, tokens), _check("selected", selected, tokens)
        if positions is not None or freqs is not None:
            if not self.turns or positions is None or freqs is None:
                raise ValueError("positions and freqs: expected both, of a plan that turns, or neither")
            expect("positions", positions, (tokens,), torch.int64)
            expect("freqs", freqs, (32,), torch.float32)
        if not tokens:
            return
        kernels.attend_kernel[(tokens * -(-self.heads // c.heads), c.splits)](
            q, near, window.slots, window.length, far, selected.slots, selected.length, sink, out, self.part,
            self.part_stat, self.scale, self.heads, window.slots.shape[1], selected.slots.shape[1],
            **constants(c, window.page_size, near.stride(0), selected.page_size, far.stride(0)),
            num_warps=c.num_warps, num_stages=c.num_stages, **launch(),
        )  # fmt: skip
        if c.splits > 1:
            kernels.merge_kernel[(tokens, self.heads, 2)](
                self.part, self.part_stat, sink, out, positions, freqs, self.heads, SPLITS=c.splits,
                num_warps=MERGE_WARPS, **launch(),
            )  # fmt: skip


def constants(config: Config, page: int, stride: int, other_page: int, other_stride: int) -> dict[str, int]:
    """The constexpr arguments; pages as powers of two, so that a slot of either pool is split without a division."""
    return {
        "WINDOW_SHIFT": page.bit_length() - 1, "WINDOW_STRIDE": stride,
        "EXTRA_SHIFT": other_page.bit_length() - 1, "EXTRA_STRIDE": other_stride,
        "BH": config.heads, "BT": config.records, "SPLITS": config.splits, "KEYS_FIRST": config.keys_first,
    }  # fmt: skip


def supports(heads: int) -> str | None:
    """None, or why that many heads cannot run."""
    return None if 1 <= heads <= 128 else f"heads={heads}: 1 to 128 on this rank"


def plan(tokens: int, heads: int, most_records: int, scale: float, *, device: torch.device | str) -> SparseMla:
    """Allocate for at most `tokens` tokens of `heads` heads and about `most_records` records each."""
    why = supports(heads)
    if why is not None:
        raise ValueError(f"sparse MLA cannot be planned: {why}")
    config = choose_config(tokens, heads, most_records)
    parts = config.splits if config.splits > 1 else 0
    part = scratch.empty(tokens, parts, heads, kv_record.DIM, dtype=torch.float32, device=device)
    stat = scratch.empty(tokens, parts, heads, 2, dtype=torch.float32, device=device)
    return SparseMla(tokens, heads, scale, config, part, stat)


def _check(name: str, pool: Pool, tokens: int) -> torch.Tensor:
    """The pool's bytes, after checking that it is one of this many tokens."""
    page = pool.page_size
    if page < 1 or page & (page - 1):
        raise ValueError(f"{name}: pages of {page} records; expected a power of two")
    expect(f"{name}.slots", pool.slots, (tokens, pool.slots.shape[-1]), torch.int32, torch.int64)
    expect(f"{name}.length", pool.length, (tokens,), torch.int32)
    return byte_pages(f"{name}.cache", pool.cache, kv_record.page_stride(page), f"{page} packed records")
