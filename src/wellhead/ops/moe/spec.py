"""SPEC of the experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes
from wellhead.ops.card import EARLY
from wellhead.ops.moe import fp8_spec, prefill_spec
from wellhead.ops.moe.drawing import LIMIT, POOL, byte, over_lists, rows, scale_bytes

TIGHT = ErrorBudget(2.0**-6, 2.0**-5, "of MXFP4 experts, and of FP8 ones where FP8 products keep every bit of a sum")
SHAPES = ((4096, 2048, 6), (7168, 3072, 6))  # d, m, top-k of V4-Flash and V4-Pro
SIZES = ((4096, 2048), (4096, 256), (7168, 384))  # d, m of V4-Flash on one rank and on eight, of V4-Pro on eight
_MMA = dict.fromkeys(("sm89", "sm120"), "m16n8k32.row.col.f32.e4m3.e4m3.f32")


def builds() -> tuple[KernelBuild, ...]:
    """Everything that "triton" may launch."""
    return few_builds() + prefill_spec.builds("w4a8-bf16") + fp8_spec.builds()


def few_builds() -> tuple[KernelBuild, ...]:
    """MXFP4 experts, few tokens."""
    from wellhead.ops import addend_kernels, addends
    from wellhead.ops.moe import kernels
    from wellhead.ops.moe.api import down_constants, gate_up_constants
    from wellhead.ops.moe.configs import WARP_GROUP_COLUMNS, Config, choose_config
    from wellhead.ops.moe.shared_api import BLOCK
    from wellhead.ops.moe.shared_kernels import swiglu_round_kernel

    found: dict[tuple[str, int], KernelBuild] = {}
    lists = {"group_expert": "*i32", "group_slots": "*i32"}
    sizes = {"D": "i32:16", "M_INTER": "i32:16"}

    def add(tile: str, kernel: Any, signature: dict[str, str], given: dict[str, Any], config: Config) -> None:
        unit = units[config]
        name = f"{tile}{f',{unit}' if unit else ''}]"
        columns = given["G"] * given["KC"] // 32
        mma = _MMA | ({"sm90": "wgmma.mma_async"} if columns >= WARP_GROUP_COLUMNS else {})
        signature = signature | dict.fromkeys(given, "constexpr")
        made = KernelBuild(name, kernel, signature, given, config.num_warps, config.num_stages, mma, unit=unit)
        found.setdefault((tile, config.num_stages), made)

    units: dict[Config, str | None] = {}
    for unit in (None, "wgmma"):
        for tokens, (d, m) in product((1, 4, 16, 40, 64, 128), SIZES):
            units.setdefault(choose_config(tokens, 6, POOL, d, m, unit is not None), unit)
    for config in units:
        given = {**gate_up_constants(config), "PDL": True}
        signature = {
            "x": "*u8", "x_scale": "*u8", "w13": "*u8", "s13": "*u8", **lists, "slot_weight": "*fp32", "h": "*bf16",
            **sizes, "TOP_K": "i32", "limit": "fp32",
        }  # fmt: skip
        tile = f"gate_up[{config.group},{config.rows}x{config.inputs}"
        add(tile, kernels.gate_up_kernel, signature, given, config)
        given = {**down_constants(config), "PDL": True}
        signature = {"h": "*u8", "h_scale": "*u8", "w2": "*u8", "s2": "*u8", **lists, "y": "*bf16", **sizes}
        tile = f"down[{config.group},{config.down_rows}x{config.down_inputs}"
        add(tile, kernels.down_kernel, signature, given, config)
    given = {"PLACES": 6, "BLOCK": addends.BLOCK, "PDL": True}
    signature = {
        "rows": "*bf16", "ids": "*i32", "last": "*bf16", "out": "*bf16", "D": "i32:16", "FIRST": "i32", "COUNT": "i32",
        **dict.fromkeys(given, "constexpr"),
    }  # fmt: skip
    last = [KernelBuild("add_up[6]", addend_kernels.add_up_kernel, signature, given)]
    given = {"BLOCK": BLOCK, "PDL": EARLY}
    signature = {"gate_up": "*bf16", "codes": "*u8", "scale": "*u8", "limit": "fp32", "M_INTER": "i32:16"}
    signature |= dict.fromkeys(given, "constexpr")
    last.append(KernelBuild("swiglu_round[128]", swiglu_round_kernel, signature, given, 1))
    return (*found.values(), *last)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.moe.api import supports as of

    if sizes.get("weight_bits", 4) == 8:
        return fp8_spec.supports(sizes)
    return of(sizes["d"], sizes["m"])


def make(tokens: int, d: int, m: int, experts: int, top_k: int, generator: Any, device: Any) -> dict[str, Any]:
    """Rows, their rounding in both orders, ids and weights, packed experts and the shared expert's result."""
    from wellhead.ops.moe import layout

    def packed(out: int, width: int) -> tuple[Any, Any]:
        scale = scale_bytes(generator, width, 3.0, experts, out, width // 32)
        return byte(generator, 0, 256, experts, out, width // 2), scale

    made = rows(tokens, d, experts, top_k, generator)
    (w13, s13), (w2, s2) = packed(2 * m, d), packed(d, m)
    made |= {"halves": layout.halves(made["codes"]), "w13": w13, "s13": s13, "w2": w2, "s2": s2}
    return {name: value.to(device) for name, value in made.items()}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """What a plan for these sizes runs: few tokens or many, MXFP4 or FP8."""
    import torch

    from wellhead.ops import card
    from wellhead.ops.moe.configs import few_tokens

    if inputs["w13"].dtype == torch.float8_e4m3fn:
        return fp8_spec.prepare(inputs)
    if len(inputs["x"]) > few_tokens(card.has("wgmma")):
        return prefill_spec.prepare("w4a8-bf16", inputs)
    return prepare_few(inputs)


def prepare_few(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernels for few tokens."""
    from wellhead.ops.moe.api import plan
    from wellhead.ops.moe.packed import PackedWeights

    (tokens, d), top_k, experts = inputs["x"].shape, inputs["ids"].shape[1], inputs["w2"].shape[0]
    layer = plan(tokens, d, inputs["w13"].shape[1] // 2, experts, top_k, LIMIT, device=inputs["x"].device)
    packed = PackedWeights(inputs["w13"], inputs["s13"], inputs["w2"], inputs["s2"])
    return over_lists(inputs, layer, packed, rows="halves")


def prepare_reference(inputs: Mapping[str, Any], rounds: bool = True) -> Callable[[], Any]:
    from wellhead.ops.linear.reference import round_input
    from wellhead.ops.moe import layout, reference

    (w1, w3), (s1, s3) = layout.separate(inputs["w13"]), layout.separate(inputs["s13"])
    gate, up = reference.PackedExperts(w1, s1), reference.PackedExperts(w3, s3)
    down = reference.PackedExperts(inputs["w2"], inputs["s2"])

    def run() -> Any:
        ids = inputs["ids"].long()
        rounding = round_input if rounds else lambda x: x
        y = reference.routed(inputs["x"], ids, inputs["weights"], gate, up, down, LIMIT, rounding)
        return (y + inputs["shared"].float()).bfloat16()

    return run


def _case(tokens: int, d: int, m: int, top_k: int, experts: int = POOL) -> Case:
    sizes = {"tokens": tokens, "d": d, "m": m, "experts": experts, "top_k": top_k}
    distinct = experts * (1 - (1 - top_k / experts) ** tokens)  # expected; a run counts its own
    moved = int(distinct * 3 * m * d * 17 / 32) + tokens * (d + d // 128 + 4 * d + 2 * top_k * (2 * m + 2 * d))
    draw = partial(make, tokens, d, m, experts, top_k)
    name = f"M={tokens},d={d},m={m}" + (f",experts={experts}" if experts != POOL else "")
    return Case(name, sizes, draw, moved, 6 * tokens * top_k * m * d)


SPEC = OpSpec(
    name="moe",
    summary="the chosen experts and the shared one",
    impls=(
        Impl(
            "triton-w4a8",
            needs=("kernels", "fp8e4nv_conversion", "block_scaled_mma"),
            shared_bytes=101376,
            builds=partial(prefill_spec.builds, "w4a8"),
            supports=prefill_spec.supports_many,
            prepare=partial(prefill_spec.prepare, "w4a8"),
        ),
        Impl("triton", needs=("kernels",), shared_bytes=101376, builds=builds, supports=supports, prepare=prepare),
        # other numerics than the checkpoint's (`reference`), so never automatic
        Impl(
            "triton-w4a16",
            needs=("kernels",),
            shared_bytes=101376,
            builds=partial(prefill_spec.builds, "w4a16"),
            supports=prefill_spec.supports,
            prepare=partial(prefill_spec.prepare, "w4a16"),
            reference=partial(prepare_reference, rounds=False),
        ),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, d, m, k) for d, m, k in SHAPES for tokens in (1, 4, 16, 64))
    + (_case(1, 4096, 1024, 6),)  # a rank of two
    + tuple(_case(tokens, *SHAPES[0], 256) for tokens in (16, 64, 128, 256, 512, 2048))  # as many as V4-Flash has
    + tuple(_case(tokens, *SHAPES[0]) for tokens in prefill_spec.TOKENS)
    + fp8_spec.cases(),
    error=ErrorBudget(
        2.0**-6,
        2.0**-4,
        "an fp32 sum in another order, and on Hopper an FP8 product of 13 bits, can move a bf16 g or u by its last "
        "bit, and with it an E4M3 code of the hidden vector by one step; the absolute part is for sums that cancel, "
        "of outputs of size one: 3e-3 in norm, the tail of 10^7 of them",
    ),
    steps=(prefill_spec.MANY,),
    batch_invariant=False,
    batch_reason="the group size follows the planned number of tokens, and on sm90 the order in which a row's blocks "
    "are added follows that; within one plan a slot has its own columns of a product, whose sums have a fixed order",
)
