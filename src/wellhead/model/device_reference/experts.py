"""Routing and experts in torch, behind the plans of their kernels."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch

from wellhead.formats import block_fp8
from wellhead.ops.addends import Addends
from wellhead.ops.linear.reference import round_input
from wellhead.ops.moe import reference as moe
from wellhead.ops.moe.packed import PackedWeights
from wellhead.ops.moe.prefill_api import W4A16, Product
from wellhead.ops.routing import reference as routing
from wellhead.ops.routing.api import ExpertLists
from wellhead.ops.routing.api import plan_lists as plan_kernel_lists


@dataclass(frozen=True)
class Router:
    top_k: int
    scale: float

    def choose(
        self, x: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
        owners: torch.Tensor, lists: Lists,
    ) -> None:  # fmt: skip
        chosen, weight = routing.choose(routing.affinity(x, gate), self.top_k, self.scale, bias)
        ids.copy_(torch.where((owners >= 0).unsqueeze(1), chosen, -1))
        weights.copy_(weight)
        lists.run(ids)

    def choose_by_token(
        self, x: torch.Tensor, gate: torch.Tensor, table: torch.Tensor, token_ids: torch.Tensor, ids: torch.Tensor,
        weights: torch.Tensor, owners: torch.Tensor, lists: Lists,
    ) -> None:  # fmt: skip
        chosen, weight = routing.choose_by_token(routing.affinity(x, gate), self.scale, table, token_ids)
        ids.copy_(torch.where((owners >= 0).unsqueeze(1), chosen, -1))
        weights.copy_(weight)
        lists.run(ids)


@dataclass(frozen=True)
class Lists:
    """The lists of a kernels' plan, filled by torch."""

    lists: ExpertLists

    def run(self, ids: torch.Tensor) -> None:
        lists, block = self.lists, self.lists.block
        local = ids.flatten().long() - lists.first_expert
        mine = ((local >= 0) & (local < lists.experts)).nonzero().flatten()
        expert = local[mine]
        counts = expert.bincount(minlength=lists.experts)
        padded = (counts + block - 1) // block * block
        ends = padded.cumsum(0)
        order = expert.argsort(stable=True)
        within = torch.arange(len(order), device=ids.device) - (counts.cumsum(0) - counts)[expert[order]]
        lists.slots.fill_(-1)
        lists.slots[(ends - padded)[expert[order]] + within] = mine[order].int()
        lists.counts.copy_(counts)
        lists.offsets.copy_(torch.cat((ends.new_zeros(1), ends)))
        lists.block_expert.fill_(-1)
        each = torch.arange(lists.experts, device=ids.device).repeat_interleave(padded // block)
        lists.block_expert[: len(each)] = each.int()

    def __getattr__(self, name: str) -> object:
        """What a plan of the experts reads of the lists."""
        return getattr(self.lists, name)


class Routings:
    @staticmethod
    def plan(tokens: int, width: int, experts: int, top_k: int, scale: float, *, device: torch.device | str) -> Router:
        return Router(top_k, scale)

    @staticmethod
    def plan_lists(
        tokens: int, top_k: int, experts: int, block: int, *, first_expert: int = 0, device: torch.device | str
    ) -> Lists:
        return Lists(plan_kernel_lists(tokens, top_k, experts, block, first_expert=first_expert, device=device))


@dataclass(frozen=True)
class Sums(Addends):
    """Addends that are added up in torch."""

    by_kernel: ClassVar[bool] = False

    def add_up(self, out: torch.Tensor) -> None:
        out.copy_(self.total())


@dataclass(frozen=True)
class Mxfp4:
    """The experts over bf16 rows, which it rounds itself."""

    limit: float
    config: SimpleNamespace

    def run(
        self, x: torch.Tensor, x_scale: torch.Tensor | None, ids: torch.Tensor, weights: torch.Tensor,
        lists: ExpertLists, packed: PackedWeights, shared: torch.Tensor,
    ) -> Addends:  # fmt: skip
        if x_scale is not None:
            raise ValueError("x_scale is given; expected bf16 rows without one")
        local = ids.long() - lists.first_expert
        local = torch.where((local >= 0) & (local < lists.experts), local, -1)
        gate, up = (moe.PackedExperts(packed.w13[:, part::2], packed.s13[:, part::2]) for part in (0, 1))
        down = moe.PackedExperts(packed.w2, packed.s2)
        y = moe.routed(x, local, weights, gate, up, down, self.limit, round_input)
        return Sums(y, ids.new_zeros(len(ids), 1), 0, 1, shared)  # added up already, not rounded yet


@dataclass(frozen=True)
class SwigluRound:
    m: int
    limit: float

    def run(self, gate_up: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> None:
        gate, up = gate_up.split(self.m, dim=-1)
        rounded, exponents = block_fp8.quantize_rows(moe.swiglu(gate, up, self.limit).to(gate_up.dtype))
        codes.copy_(rounded)
        scale.copy_(exponents)


class Experts:
    plan_shared = SwigluRound
    product = W4A16  # the rows come as they are

    @staticmethod
    def plan(
        tokens: int, d: int, m: int, experts: int, top_k: int, limit: float, product: Product, *,
        device: torch.device | str,
    ) -> Mxfp4:  # fmt: skip
        return Mxfp4(limit, SimpleNamespace(group=1))
