"""Addresses, records, compressor, indexer and attention in torch, behind the plans of their kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from wellhead.formats import e4m3, index_key, kv_record, mxfp4
from wellhead.formats.paged import PagedLayout
from wellhead.ops.addresses import reference as addresses
from wellhead.ops.addresses.api import ALIGNED, Wanted
from wellhead.ops.compressor import reference as compressor
from wellhead.ops.indexer import reference as indexer
from wellhead.ops.indexer.api import Query
from wellhead.ops.norm_quant.reference import rms_norm
from wellhead.ops.rope import reference as rope
from wellhead.ops.sparse_mla import reference as sparse_mla
from wellhead.ops.sparse_mla.api import Pool
from wellhead.ops.topk import reference as topk
from wellhead.ops.topk.api import PAGE


@dataclass(frozen=True)
class Addresses:
    window: int
    page: int
    wanted: Mapping[int, Wanted]

    @classmethod
    def plan(
        cls, tokens: int, pages: int, window: int, page: int, wanted: Mapping[int, Wanted], *,
        device: torch.device | str,
    ) -> Addresses:  # fmt: skip
        return cls(window, page, wanted)

    def run(
        self, positions: torch.Tensor, rows: torch.Tensor, owners: torch.Tensor, page_table: torch.Tensor,
        window_table: torch.Tensor, freqs: Mapping[int, torch.Tensor], ends: Mapping[int, torch.Tensor] | None = None,
    ) -> tuple[addresses.Window, dict[int, addresses.Entries]]:  # fmt: skip
        of = (positions, rows, owners, page_table)
        found = {}
        for ratio, wanted in self.wanted.items():
            width = -(-page_table.shape[1] * (self.page // ratio) // ALIGNED) * ALIGNED if wanted.every else 0
            end = None if ends is None else ends[ratio]
            found[ratio] = addresses.entries(*of, freqs[ratio], end, ratio, self.page, wanted.most, width)
        return addresses.window(*of, window_table, self.window, self.page), found


@dataclass(frozen=True)
class Store:
    heads: int
    page_size: int
    eps: float

    def run(
        self, q: torch.Tensor, kv: torch.Tensor, weight: torch.Tensor, cache: torch.Tensor,
        slots: torch.Tensor, positions: torch.Tensor, freqs: torch.Tensor, q_out: torch.Tensor,
        kv_out: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        q_out.copy_(rope.apply(rms_norm(q, None, self.eps), positions, freqs))
        row = rope.apply(rms_norm(kv, weight, self.eps), positions, freqs)
        kv_record.write(cache, slots.clamp_min(-1), row)
        if kv_out is not None:
            kv_out.copy_(row)


@dataclass(frozen=True)
class Prefill:
    """Both plans of the compressor: a decode is a prefill whose requests bring one token each."""

    ratio: int
    dim: int
    eps: float
    page_size: int = 0
    keys: PagedLayout | None = None

    def run(
        self, projected: torch.Tensor, ape: torch.Tensor, positions: torch.Tensor, state_slots: torch.Tensor,
        firsts: torch.Tensor, state: torch.Tensor, norm: torch.Tensor, ends: torch.Tensor, cos: torch.Tensor,
        sin: torch.Tensor, slots: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        real = (state_slots >= 0).nonzero().flatten()  # padding changes nothing
        place = positions[real].long()
        begins = firsts[real] == real
        starts = torch.cat((begins.nonzero().flatten(), real.new_tensor([len(real)])))
        rows, requests = begins.long().cumsum(0) - 1, state_slots[real][begins].long()
        blocks = compressor.completed_blocks(self.ratio, place, rows, starts, requests)
        kv, gate = projected[real].chunk(2, dim=-1)
        pooled = compressor.advance(state, kv, gate + ape[place % self.ratio], blocks).bfloat16()

        entry_of = torch.full((len(positions),), -1, device=projected.device)
        entry_of[real[blocks.token]] = torch.arange(len(pooled), device=projected.device)
        entry = torch.where(ends >= 0, entry_of[ends.clamp_min(0).long()], -1)
        there = (entry >= 0).nonzero().flatten()
        entries = rope.rotate(rms_norm(pooled[entry[there]], norm, self.eps), cos[there], sin[there])
        if self.keys is not None:
            indexer.write_keys(out, slots[there].clamp_min(-1), indexer.rotate(entries))
        else:
            kv_record.write(out, slots[there].clamp_min(-1), entries)


@dataclass(frozen=True)
class Decode:
    prefill: Prefill

    def run(
        self, projected: torch.Tensor, ape: torch.Tensor, positions: torch.Tensor, state_slots: torch.Tensor,
        state: torch.Tensor, norm: torch.Tensor, *tail: torch.Tensor,
    ) -> None:  # fmt: skip
        each = torch.arange(len(positions), device=positions.device)
        self.prefill.run(projected, ape, positions, state_slots, each, state, norm, each, *tail)


def plan_decode(ratio: int, dim: int, eps: float, *, page_size: int = 0, keys: PagedLayout | None = None) -> Decode:
    return Decode(Prefill(ratio, dim, eps, page_size, keys))


@dataclass(frozen=True)
class IndexLogits:
    columns: int

    @classmethod
    def plan(cls, tokens: int, heads: int, columns: int, layout: PagedLayout, *, chunked: bool = False) -> IndexLogits:
        return cls(columns)

    def run(
        self, query: Query, weights: torch.Tensor, cache: torch.Tensor, page_table: torch.Tensor, rows: torch.Tensor,
        lengths: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        q = e4m3.decode(query.codes) if query.scale is None else mxfp4.dequantize(query.codes, query.scale)
        within = torch.arange(PAGE, device=out.device)
        for row in rows.unique().tolist():
            mine = (rows == row).nonzero().flatten()
            page = page_table[row, : self.columns // PAGE].long().unsqueeze(-1)
            slots = torch.where(page >= 0, page * PAGE + within, -1).flatten()
            slots = slots[: int(lengths[mine].max())]
            found = indexer.paged_logits(q[mine], cache, slots, weights[mine])
            out[mine, : len(slots)] = found.masked_fill(slots < 0, float("-inf"))

    @staticmethod
    def round_query(
        q: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, tail: torch.Tensor, *, layout: PagedLayout,
        rotation: tuple[torch.Tensor, torch.Tensor], factor: float, scaled: torch.Tensor,
    ) -> None:  # fmt: skip
        q = indexer.rotate(rope.apply(q, *rotation))
        rounded, scale = index_key.quantize_fp8(q) if layout is index_key.FP8 else mxfp4.quantize(q)
        codes.copy_(rounded)
        scaled.copy_(weights.float() * factor)
        tail.copy_(scaled * scale if layout is index_key.FP8 else scale)


@dataclass(frozen=True)
class TopK:
    k: int
    page: int

    @classmethod
    def plan(cls, rows: int, columns: int, k: int, *, page: int = PAGE, device: torch.device | str) -> TopK:
        return cls(k, page)

    def run(self, logits: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor | None, out: torch.Tensor) -> None:
        entries = topk.select(logits, lengths, self.k)
        if table is None or not self.page:
            out.copy_(entries)
            return
        page = table.long().gather(1, entries.clamp_min(0) // self.page)
        out.copy_(torch.where((entries < 0) | (page < 0), -1, page * self.page + entries % self.page))


@dataclass(frozen=True)
class SparseMla:
    scale: float
    turns = False

    @classmethod
    def plan(cls, tokens: int, heads: int, most_records: int, scale: float, *, device: torch.device | str) -> SparseMla:
        return cls(scale)

    def run(self, q: torch.Tensor, window: Pool, selected: Pool, sink: torch.Tensor, out: torch.Tensor) -> None:
        pools = []
        for pool in (window, selected):
            looked_at = torch.arange(pool.slots.shape[1], device=q.device) < pool.length.unsqueeze(1)
            pools.append((pool.cache, torch.where(looked_at, pool.slots, -1)))
        out.copy_(sparse_mla.attend_paged(q, pools, sink, self.scale))
