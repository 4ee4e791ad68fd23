"""MXFP4 experts as a plan: three launches over token lists that routing built on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops import card, scratch
from wellhead.ops.addends import Addends
from wellhead.ops.card import launch
from wellhead.ops.checks import expect
from wellhead.ops.moe.configs import Config, choose_config
from wellhead.ops.moe.grouped import Grouped, check_mxfp4, supports
from wellhead.ops.moe.packed import PackedWeights
from wellhead.ops.norm_quant import api as norm_quant
from wellhead.ops.norm_quant.api import NormQuant
from wellhead.ops.routing.api import ExpertLists


@dataclass(frozen=True)
class Mxfp4Experts(Grouped):
    """Addends of bf16(sum over a token's experts of w2 round(weight * silu(min(g, limit)) * clamp(u)) + shared).

    run(codes E4M3 [T, d] in halves order (`layout.halves`; norm_quant writes it), scale u8 [T, d/128], ids i32 [T, K],
    weights fp32 [T, K], lists, packed, shared bf16 [T, d]). `lists` are ExpertLists in blocks of `config.group`, of the
    same ids; an id that no list holds (-1, or another rank's) adds nothing and its expert is not read. g, u, the hidden
    vector and each expert's result are rounded to bf16; the hidden vector to E4M3 per 128 in front of w2. The result
    refers to buffers of this plan and to `shared`, which no launch of this reads. T may be 0. Allocates, synchronises
    nothing.
    """

    config: Config
    hidden_scale: torch.Tensor  # u8 [tokens * K, m / 128]
    hidden_codes: torch.Tensor  # E4M3 [tokens * K, m], halves order
    rounding: NormQuant

    def run(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        lists: ExpertLists,
        packed: PackedWeights,
        shared: torch.Tensor,
    ) -> Addends:
        from wellhead.ops.moe import kernels

        tokens, d, m, e, c = codes.shape[0], self.d, self.m, self.experts, self.config
        addends = self.addends(tokens, ids, weights, lists, shared)
        expect("codes", codes, (tokens, d), torch.float8_e4m3fn)
        expect("scale", scale, (tokens, d // 128), torch.uint8)
        check_mxfp4(packed, e, d, m)
        if not tokens:
            return addends
        groups = lists.block_expert.shape[0]
        kernels.gate_up_kernel[(groups, 2 * m // c.rows)](
            codes.view(torch.uint8), scale, packed.w13, packed.s13, lists.block_expert, lists.slots, weights,
            self.hidden, d, m, self.top_k, self.limit, **gate_up_constants(c), num_warps=c.num_warps, **launch(),
        )  # fmt: skip
        used = tokens * self.top_k
        hidden, halves, hidden_scale = self.hidden[:used], self.hidden_codes[:used], self.hidden_scale[:used]
        self.rounding.run(hidden, None, None, hidden_scale, halves=halves)
        kernels.down_kernel[(groups, d // c.down_rows)](
            halves.view(torch.uint8), hidden_scale, packed.w2, packed.s2, lists.block_expert, lists.slots, self.each,
            d, m, **down_constants(c), num_warps=c.num_warps, **launch(),
        )  # fmt: skip
        return addends


def gate_up_constants(config: Config) -> dict[str, int]:
    return {"G": config.group, "BN": config.rows // 2, "KC": config.inputs, "STAGES": config.num_stages}


def down_constants(config: Config) -> dict[str, int]:
    return {"G": config.group, "R": config.down_rows, "KC": config.down_inputs, "STAGES": config.num_stages}


def plan(
    tokens: int, d: int, m: int, experts: int, top_k: int, limit: float, *, device: torch.device | str
) -> Mxfp4Experts:
    """Allocate for at most `tokens` tokens. ValueError names what is supported."""
    why = supports(d, m)
    if why is not None:
        raise ValueError(f"MXFP4 experts cannot be planned: {why}")
    hidden = scratch.empty(tokens * top_k, m, dtype=torch.bfloat16, device=device)
    codes = scratch.empty(tokens * top_k, m, dtype=torch.float8_e4m3fn, device=device)
    scale = scratch.empty(tokens * top_k, m // 128, dtype=torch.uint8, device=device)
    each = scratch.empty(tokens * top_k, d, dtype=torch.bfloat16, device=device)
    config = choose_config(tokens, top_k, experts, d, m, card.has("wgmma"))
    rounding = norm_quant.plan(m, 0.0)
    return Mxfp4Experts(tokens, d, m, experts, top_k, limit, config, hidden, scale, each, codes, rounding)
