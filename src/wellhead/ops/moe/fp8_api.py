"""Block-FP8 experts as a plan, for one token and for thousands: three launches over token lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.addends import Addends
from wellhead.ops.checks import expect
from wellhead.ops.moe.grouped import Grouped, Tiles, refusal, workspaces
from wellhead.ops.moe.grouped_configs import choose_fp8
from wellhead.ops.moe.packed import PackedWeights
from wellhead.ops.norm_quant.api import as_bytes
from wellhead.ops.routing.api import ExpertLists


@dataclass(frozen=True)
class Fp8Experts(Grouped):
    """Addends of bf16(sum over a token's experts of w2 round(weight * silu(min(g, limit)) * clamp(u)) + shared).

    run(codes E4M3 [T, d], scale u8 [T, d/128], ids i32 [T, K], weights fp32 [T, K], lists, packed, shared bf16 [T, d]).
    `lists` are ExpertLists in blocks of `config.group`, of the same ids; an id that no list holds
    (-1, or another rank's) adds nothing and its expert is not read. g, u, the hidden vector and each expert's result
    are rounded to bf16; the hidden vector to E4M3 with a power-of-two scale per 128 in front of w2. T may be 0.
    Allocates, synchronises nothing.
    """

    config: Tiles

    def run(
        self, codes: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
        lists: ExpertLists, packed: PackedWeights, shared: torch.Tensor,
    ) -> Addends:  # fmt: skip
        from wellhead.ops.moe import fp8_kernels as kernels

        tokens, d, m, e, c = codes.shape[0], self.d, self.m, self.experts, self.config
        addends = self.addends(tokens, ids, weights, lists, shared)
        expect("codes", codes, (tokens, d), torch.float8_e4m3fn)
        expect("scale", scale, (tokens, d // 128), torch.uint8)
        expect("w13", packed.w13, (e, 2 * m, d), torch.float8_e4m3fn)
        expect("s13", packed.s13, (e, 2 * m // 128, d // 128), torch.uint8, torch.float32)
        expect("w2", packed.w2, (e, d, m), torch.float8_e4m3fn)
        expect("s2", packed.s2, (e, d // 128, m // 128), packed.s13.dtype)
        if not tokens:
            return addends
        wide = packed.s13.dtype == torch.float32
        blocks = lists.block_expert.shape[0]
        hidden = as_bytes(self.hidden) if rounds_early(c) else self.hidden
        kernels.gate_up_kernel[(blocks * (2 * m // c.rows),)](
            as_bytes(codes), scale, as_bytes(packed.w13), packed.s13, lists.block_expert, lists.slots, weights,
            hidden, self.hidden_scale, d, m, self.top_k, self.limit,
            **gate_up_constants(c, wide), num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip
        kernels.down_kernel[(blocks * (d // c.down_rows),)](
            hidden, self.hidden_scale, as_bytes(packed.w2), packed.s2, lists.block_expert, lists.slots, self.each, d, m,
            **down_constants(c, wide), num_warps=c.down_warps, num_stages=c.num_stages,
        )  # fmt: skip
        return addends


def rounds_early(config: Tiles) -> bool:
    """Whether the first launch rounds the hidden vector; otherwise each program of the second does it for itself."""
    return config.rows == 256


def gate_up_constants(config: Tiles, wide: bool) -> dict[str, int | bool]:
    return {"G": config.group, "R": config.rows, "ROUND": rounds_early(config), "WIDE": wide}


def down_constants(config: Tiles, wide: bool) -> dict[str, int | bool]:
    return {"G": config.group, "R": config.down_rows, "ROUND": not rounds_early(config), "WIDE": wide}


def plan(
    tokens: int, d: int, m: int, experts: int, top_k: int, limit: float, *, device: torch.device | str
) -> Fp8Experts:
    """Allocate for at most `tokens` tokens. ValueError names what is supported."""
    why = refusal(tokens, d, m, top_k)
    if why is not None:
        raise ValueError(f"block-FP8 experts cannot be planned: {why}")
    config = choose_fp8(tokens, top_k, experts)
    hidden, scale, each = workspaces(tokens, d, m, top_k, rounds_early(config), device)
    return Fp8Experts(tokens, d, m, experts, top_k, limit, config, hidden, scale, each)
