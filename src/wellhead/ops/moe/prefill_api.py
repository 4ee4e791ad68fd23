"""MXFP4 experts for many tokens as a plan, and `plan`, which chooses between it and the kernels for few."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops import card, scratch
from wellhead.ops.addends import Addends
from wellhead.ops.checks import expect
from wellhead.ops.moe import api
from wellhead.ops.moe.configs import few_tokens
from wellhead.ops.moe.grouped import Grouped, Tiles, check_mxfp4, refusal, workspaces
from wellhead.ops.moe.grouped_configs import choose_prefill
from wellhead.ops.moe.packed import PackedWeights
from wellhead.ops.routing.api import ExpertLists


@dataclass(frozen=True)
class Product:
    """How E2M1 weights meet activations."""

    rounded: bool  # activations are E4M3 per 128 in front of both products, as the checkpoint was made for
    native: bool  # block-scaled instructions over E4M3; otherwise bf16, which holds every factor exactly

    @property
    def widens(self) -> bool:
        """Rounded activations are widened to bf16 in front of each product."""
        return self.rounded and not self.native


W4A8 = Product(rounded=True, native=True)
W4A8_BF16 = Product(rounded=True, native=False)
W4A16 = Product(rounded=False, native=False)
GROUPS = 8  # of 128 hidden channels that a program rounds
PRODUCTS = {"w4a8": W4A8, "w4a8-bf16": W4A8_BF16, "w4a16": W4A16}


@dataclass(frozen=True)
class Mxfp4Prefill(Grouped):
    """Addends of bf16(sum over a token's experts of w2 round(weight * silu(min(g, limit)) * clamp(u)) + shared).

    run(x, x_scale, ids i32 [T, K], weights fp32 [T, K], lists, packed, shared bf16 [T, d]): x is E4M3
    [T, d] with x_scale u8 [T, d/128] if the product is rounded, otherwise bf16 with x_scale None and no rounding to
    E4M3 anywhere. `lists` are ExpertLists in blocks of `config.group`, of the same ids; an id that no list holds adds
    nothing and its expert is not read. g, u, the hidden vector and each expert's result are rounded to bf16. T may be
    0. Two launches, four for W4A8_BF16, which widens x in front of the first and rounds the hidden vector between them.
    Allocates, synchronises nothing.
    """

    config: Tiles
    product: Product
    widened: torch.Tensor | None  # bf16 [tokens, d]

    def run(
        self, x: torch.Tensor, x_scale: torch.Tensor | None, ids: torch.Tensor, weights: torch.Tensor,
        lists: ExpertLists, packed: PackedWeights, shared: torch.Tensor,
    ) -> Addends:  # fmt: skip
        from wellhead.ops.moe import prefill_kernels as kernels

        tokens, d, m, e, c = x.shape[0], self.d, self.m, self.experts, self.config
        addends = self.addends(tokens, ids, weights, lists, shared)
        expect("x", x, (tokens, d), torch.float8_e4m3fn if self.product.rounded else torch.bfloat16)
        if (x_scale is None) == self.product.rounded:
            raise ValueError(f"x_scale is {'missing' if x_scale is None else 'given'}; the product is {self.product}")
        if x_scale is not None:
            expect("x_scale", x_scale, (tokens, d // 128), torch.uint8)
        check_mxfp4(packed, e, d, m)
        if not tokens:
            return addends
        if self.widened is not None:
            kernels.widen_kernel[(tokens, -(-d // 1024))](
                x.view(torch.uint8), x_scale, self.widened, d, BLOCK=1024, num_warps=4
            )
            x, x_scale = self.widened, None
        w13, w2 = packed.w13, packed.w2
        if self.product.native:
            w13, w2 = w13.view(torch.int16), w2.view(torch.int16)
        blocks = lists.block_expert.shape[0]
        kernels.gate_up_kernel[(blocks * (2 * m // c.rows),)](
            x, x_scale, w13, packed.s13, lists.block_expert, lists.slots, weights, self.hidden, self.hidden_scale,
            d, m, self.top_k, self.limit,
            **gate_up_constants(c, self.product), num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip
        if self.product.widens:
            kernels.round_hidden_kernel[(tokens * self.top_k, -(-m // (128 * GROUPS)))](
                self.hidden, m, GROUPS=GROUPS, num_warps=4
            )
        kernels.down_kernel[(blocks * (d // c.down_rows),)](
            self.hidden, self.hidden_scale, w2, packed.s2, lists.block_expert, lists.slots, self.each, d, m,
            **down_constants(c, self.product), num_warps=c.down_warps, num_stages=c.num_stages,
        )  # fmt: skip
        return addends


def gate_up_constants(config: Tiles, product: Product) -> dict[str, int | bool]:
    return {"G": config.group, "R": config.rows, "KC": config.inputs, "NATIVE": product.native}


def down_constants(config: Tiles, product: Product) -> dict[str, int | bool]:
    return {"G": config.group, "R": config.down_rows, "KC": config.inputs, "NATIVE": product.native}


def plan_prefill(
    tokens: int, d: int, m: int, experts: int, top_k: int, limit: float, product: Product, *,
    device: torch.device | str,
) -> Mxfp4Prefill:  # fmt: skip
    """Allocate for at most `tokens` tokens, however few. ValueError names what is supported."""
    why = refusal(tokens, d, m, top_k)
    if why is not None:
        raise ValueError(f"MXFP4 experts cannot be planned: {why}")
    config = choose_prefill(tokens, top_k, experts, product.native, card.has("wgmma"))
    hidden, scale, each = workspaces(tokens, d, m, top_k, product.native, device)
    widened = scratch.empty(tokens, d, dtype=torch.bfloat16, device=device) if product.widens else None
    return Mxfp4Prefill(
        tokens, d, m, experts, top_k, limit, config, hidden, scale, each, product=product, widened=widened
    )


def plan(
    tokens: int, d: int, m: int, experts: int, top_k: int, limit: float, product: Product, *,
    device: torch.device | str,
) -> api.Mxfp4Experts | Mxfp4Prefill:  # fmt: skip
    """The plan for at most `tokens` tokens: up to `few_tokens` the kernels that stream, beyond them `product`.

    Both run over (codes, scale, ids, weights, lists, packed, shared) with lists in blocks of `config.group`. W4A16 has
    no form for few tokens: those kernels multiply E4M3.
    """
    if product.rounded and tokens <= few_tokens(card.has("wgmma") and not product.native):
        return api.plan(tokens, d, m, experts, top_k, limit, device=device)
    return plan_prefill(tokens, d, m, experts, top_k, limit, product, device=device)
