"""MXFP4 experts for many tokens in the SPEC: builds, and what a case runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wellhead.dispatch.spec import KernelBuild, Sizes
from wellhead.ops.moe.configs import FEW_TOKENS
from wellhead.ops.moe.drawing import LIMIT, POOL, over_lists

TOKENS = (256, 4096)  # of the cases
MANY = FEW_TOKENS + 1
_BF16 = {
    **dict.fromkeys(("sm89", "sm120", "sm121"), "m16n8k16.row.col.f32.bf16"),
    "sm90": "wgmma.mma_async.sync.aligned",
}
_SCALED = "kind::mxf8f6f4.block_scale"
# sm_121: Triton 3.6 and 3.7 lower the block-scaled product to bf16, 3.9 does not
_NATIVE = {"sm120": _SCALED, "sm121@3.9": _SCALED}


def builds(name: str) -> tuple[KernelBuild, ...]:
    """Both products for every tile that few, some and many slots an expert choose, and what runs in front of them."""
    from wellhead.ops.moe import prefill_kernels as kernels
    from wellhead.ops.moe.grouped import Tiles
    from wellhead.ops.moe.grouped_configs import choose_prefill
    from wellhead.ops.moe.prefill_api import GROUPS, PRODUCTS, down_constants, gate_up_constants

    product = PRODUCTS[name]
    native = product.native
    rows, words = ("*fp8e4nv", "*i16") if native else ("*bf16", "*u8")
    lists = {"block_expert": "*i32", "block_slots": "*i32"}
    sizes = {"D": "i32:16", "M_INTER": "i32:16"}
    units: dict[Tiles, str | None] = {}
    for unit in (None, "wgmma"):
        for tokens in (MANY, 1024, 4096):
            units.setdefault(choose_prefill(tokens, 6, POOL, native, unit is not None), unit)
    found = []
    for config, unit in units.items():
        mma = _NATIVE if native else _BF16
        given: dict[str, Any] = {
            **gate_up_constants(config, product),
            **({} if native else {"x_scale": None, "h_scale": None}),
        }
        signature = {
            "x": rows, "x_scale": "*u8", "w13": words, "s13": "*u8", **lists, "slot_weight": "*fp32", "h": rows,
            "h_scale": "*u8", **sizes, "TOP_K": "i32", "limit": "fp32", **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        tile = f"{name},{config.group}{f',{unit}' if unit else ''}"
        launched = config.num_warps, config.num_stages, mma
        found.append(KernelBuild(f"gate_up[{tile}]", kernels.gate_up_kernel, signature, given, *launched, unit=unit))
        given = {**down_constants(config, product), **({} if native else {"h_scale": None})}
        signature = {
            "h": rows, "h_scale": "*u8", "w2": words, "s2": "*u8", **lists, "y": "*bf16", **sizes,
            **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        launched = config.down_warps, config.num_stages, mma
        found.append(KernelBuild(f"down[{tile}]", kernels.down_kernel, signature, given, *launched, unit=unit))
    if product.widens:
        signature = {"codes": "*u8", "scale": "*u8", "out": "*bf16", "D": "i32:16", "BLOCK": "constexpr"}
        found.append(KernelBuild("widen[1024]", kernels.widen_kernel, signature, {"BLOCK": 1024}))
        signature = {"h": "*bf16", "M_INTER": "i32:16", "GROUPS": "constexpr"}
        found.append(KernelBuild(f"round_hidden[{GROUPS}]", kernels.round_hidden_kernel, signature, {"GROUPS": GROUPS}))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    """MXFP4 experts."""
    from wellhead.ops.moe.grouped import refusal

    if sizes.get("weight_bits", 4) != 4:
        return f"weight_bits={sizes['weight_bits']}: MXFP4 experts have 4"
    return refusal(sizes["tokens"], sizes["d"], sizes["m"], sizes["top_k"])


def supports_many(sizes: Sizes) -> str | None:
    """As many tokens as are quicker here than in the kernels that stream."""
    if sizes["tokens"] < MANY and sizes.get("weight_bits", 4) == 4:
        return f"tokens={sizes['tokens']}: more than {MANY - 1}; fewer stream through 'triton'"
    return supports(sizes)


def prepare(name: str, inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernels for many tokens."""
    from wellhead.ops.moe.packed import PackedWeights
    from wellhead.ops.moe.prefill_api import PRODUCTS, plan_prefill

    product = PRODUCTS[name]
    (tokens, d), top_k, experts = inputs["x"].shape, inputs["ids"].shape[1], inputs["w2"].shape[0]
    device, m = inputs["x"].device, inputs["w13"].shape[1] // 2
    layer = plan_prefill(tokens, d, m, experts, top_k, LIMIT, product, device=device)
    packed = PackedWeights(inputs["w13"], inputs["s13"], inputs["w2"], inputs["s2"])
    return over_lists(inputs, layer, packed, *(("codes", "scale") if product.rounded else ("x", None)))
