"""Hyper-connections in torch, behind the functions of their kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats import block_fp8
from wellhead.ops.addends import Addends
from wellhead.ops.hyper_connection import reference
from wellhead.ops.hyper_connection.api import Beside, Site
from wellhead.ops.moe import layout
from wellhead.ops.norm_quant.api import Rounded
from wellhead.ops.norm_quant.reference import rms_norm


@dataclass(frozen=True)
class Constants:
    norm_eps: float
    hc_eps: float
    iterations: int


class HyperConnection:
    @staticmethod
    def plan(
        max_tokens: int, d: int, n: int, *, norm_eps: float, hc_eps: float, iterations: int,
        device: torch.device | str,
    ) -> Constants:  # fmt: skip
        return Constants(norm_eps, hc_eps, iterations)

    @staticmethod
    def pre(
        plan: Constants, streams: torch.Tensor, site: Site, out: torch.Tensor, post_out: torch.Tensor,
        comb_out: torch.Tensor, rounded: Rounded | None = None, beside: Beside | None = None,
    ) -> None:  # fmt: skip
        u, post, comb = reference.pre(
            streams, site.fn, site.base, site.scale,
            norm_eps=plan.norm_eps, hc_eps=plan.hc_eps, iterations=plan.iterations,
        )  # fmt: skip
        out.copy_(_normed(plan, site, u))
        post_out.copy_(post)
        comb_out.copy_(comb)
        if rounded is not None:
            codes, scale = block_fp8.quantize_rows(out)
            rounded.codes.copy_(codes)
            rounded.scale.copy_(scale)
            if rounded.halves is not None:
                rounded.halves.copy_(layout.halves(codes))

    @classmethod
    def post_pre(
        cls, plan: Constants, y: torch.Tensor | Addends, streams: torch.Tensor, post_weight: torch.Tensor,
        comb: torch.Tensor, site: Site, streams_out: torch.Tensor, out: torch.Tensor, post_out: torch.Tensor,
        comb_out: torch.Tensor, rounded: Rounded | None = None, beside: Beside | None = None,
    ) -> None:  # fmt: skip
        cls.post(y.total() if isinstance(y, Addends) else y, streams, post_weight, comb, streams_out)
        cls.pre(plan, streams_out, site, out, post_out, comb_out, rounded)

    @staticmethod
    def head(plan: Constants, streams: torch.Tensor, site: Site, out: torch.Tensor) -> None:
        found = reference.head(streams, site.fn, site.base, site.scale, norm_eps=plan.norm_eps, hc_eps=plan.hc_eps)
        out.copy_(_normed(plan, site, found))

    @staticmethod
    def post(
        y: torch.Tensor, streams: torch.Tensor, post_weight: torch.Tensor, comb: torch.Tensor, out: torch.Tensor
    ) -> None:
        out.copy_(reference.post(y, streams, post_weight, comb))


def _normed(plan: Constants, site: Site, u: torch.Tensor) -> torch.Tensor:
    return u if site.norm_weight is None else rms_norm(u, site.norm_weight, plan.norm_eps)
