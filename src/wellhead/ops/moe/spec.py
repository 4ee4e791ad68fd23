"""SPEC of the experts."""

from __future__ import annotations

from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

POOL = 96  # experts that a case draws from uniformly
SHAPES = ((4096, 2048, 6), (7168, 3072, 6))  # d, m, top-k of V4-Flash and V4-Pro
_MMA = dict.fromkeys(("sm89", "sm120"), "m16n8k32.row.col.f32.e4m3.e4m3.f32")


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.moe import kernels
    from wellhead.ops.moe.api import down_constants, gate_up_constants
    from wellhead.ops.moe.configs import choose_config

    found = []
    lists = {"group_expert": "*i32", "group_slots": "*i32"}
    sizes = {"D": "i32:16", "M_INTER": "i32:16"}
    for config in {choose_config(tokens, 6, POOL): None for tokens in (1, 4, 16, 64)}:
        given = gate_up_constants(config)
        signature = {
            "x": "*u8", "x_scale": "*u8", "w13": "*u8", "s13": "*u8", **lists, "slot_weight": "*fp32", "h": "*bf16",
            **sizes, "TOP_K": "i32", "limit": "fp32", **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        tile = config.num_warps, config.num_stages, _MMA
        found.append(KernelBuild(f"gate_up[{config.group}]", kernels.gate_up_kernel, signature, given, *tile))
        given = down_constants(config)
        signature = {
            "h": "*bf16", "w2": "*u8", "s2": "*u8", **lists, "y": "*bf16", **sizes, **dict.fromkeys(given, "constexpr")
        }  # fmt: skip
        found.append(KernelBuild(f"down[{config.group}]", kernels.down_kernel, signature, given, *tile))
    given = {"TOP_K": 6, "BLOCK": 1024}
    signature = {
        "y": "*bf16", "ids": "*i32", "shared": "*bf16", "out": "*bf16", "D": "i32:16", "FIRST": "i32", "EXPERTS": "i32",
        **dict.fromkeys(given, "constexpr"),
    }  # fmt: skip
    found.append(KernelBuild("combine[6]", kernels.combine_kernel, signature, given))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.moe.api import supports as of

    return of(sizes["d"], sizes["m"])


def make(tokens: int, d: int, m: int, experts: int, top_k: int, generator: Any, device: Any) -> dict[str, Any]:
    """Rows, their rounding, ids and weights of each token, packed experts and the shared expert's result."""
    import torch

    from wellhead.formats import block_fp8, mxfp4
    from wellhead.ops.moe.layout import interleave

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(tokens, d).bfloat16()
    codes, scale = block_fp8.quantize_rows(x)
    gate, up, down = (mxfp4.quantize(normal(experts, *size) * size[-1] ** -0.5) for size in ((m, d), (m, d), (d, m)))
    weights = torch.rand(tokens, top_k, generator=generator)
    made = {
        "x": x, "codes": codes, "scale": scale, "weights": weights / weights.sum(-1, keepdim=True) * 1.5,
        "ids": torch.rand(tokens, experts, generator=generator).topk(top_k).indices.int(),
        "w13": interleave(gate[0], up[0]), "s13": interleave(gate[1], up[1]), "w2": down[0], "s2": down[1],
        "shared": normal(tokens, d).bfloat16(),
    }  # fmt: skip
    return {name: value.to(device) for name, value in made.items()}


def _case(tokens: int, d: int, m: int, top_k: int) -> Case:
    sizes = {"tokens": tokens, "d": d, "m": m, "experts": POOL, "top_k": top_k}
    distinct = POOL * (1 - (1 - top_k / POOL) ** tokens)  # expected; a run counts its own
    moved = int(distinct * 3 * m * d * 17 / 32) + tokens * (d + d // 128 + 4 * d + 2 * top_k * (2 * m + 2 * d))
    draw = partial(make, tokens, d, m, POOL, top_k)
    return Case(f"M={tokens},d={d},m={m}", sizes, draw, moved, 6 * tokens * top_k * m * d)


SPEC = OpSpec(
    name="moe",
    summary="the chosen experts and the shared one",
    impls=(
        Impl("triton", needs=("kernels", "fp8e4nv_conversion"), shared_bytes=101376, builds=builds, supports=supports),
        Impl(REFERENCE),
    ),
    cases=tuple(_case(tokens, d, m, k) for d, m, k in SHAPES for tokens in (1, 4, 16, 64)),
    error=ErrorBudget(
        2.0**-6,
        2.0**-8,
        "products are exact; an fp32 sum in another order can move a bf16 g or u by its last bit, and with it an E4M3 "
        "code of the hidden vector by one step; the absolute part is for sums that cancel",
    ),
    batch_invariant=True,
    batch_reason="each slot has its own columns of a product, and its partial sums are added in a fixed order; the "
    "group size follows the planned number of tokens, not the batch",
)
