"""Block-FP8 experts in the SPEC: builds, cases and what they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import Case, KernelBuild, Sizes
from wellhead.ops.moe.drawing import LIMIT, over_lists, rows, scale_bytes

POOL = 32  # experts of 25 MB that a case draws from uniformly
TOKENS = (1, 16, 64, 256, 4096)
D, M, TOP_K = 4096, 2048, 6  # of V4-Flash
SPREAD = 100.0  # of the codes: normal values that rarely reach 448
# sm_121: Triton 3.6 and 3.7 lower FP8 products to f16, 3.9 does not
_FP8 = "e4m3.e4m3"
_MMA = {"sm89": _FP8, "sm120": _FP8, "sm121@3.9": _FP8, "sm90": "wgmma.mma_async.sync.aligned"}


def builds() -> tuple[KernelBuild, ...]:
    """Both launches, streaming and wide, for scales of one byte and of fp32."""
    from wellhead.ops.moe import fp8_kernels as kernels
    from wellhead.ops.moe.fp8_api import down_constants, gate_up_constants, rounds_early
    from wellhead.ops.moe.grouped_configs import choose_fp8

    lists = {"block_expert": "*i32", "block_slots": "*i32"}
    sizes = {"D": "i32:16", "M_INTER": "i32:16"}
    found = []
    for config in {choose_fp8(tokens, TOP_K, POOL): None for tokens in TOKENS}:
        for wide in (False, True):
            early, scales = rounds_early(config), "*fp32" if wide else "*u8"
            hidden = "*u8" if early else "*bf16"
            absent: dict[str, Any] = {} if early else {"h_scale": None}
            given = {**gate_up_constants(config, wide), **absent}
            signature = {
                "x": "*u8", "x_scale": "*u8", "w13": "*u8", "s13": scales, **lists, "slot_weight": "*fp32",
                "h": hidden, "h_scale": "*u8", **sizes, "TOP_K": "i32", "limit": "fp32",
                **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            name = f"fp8,{config.group},{'fp32' if wide else 'ue8m0'}"
            tile = config.num_warps, config.num_stages, _MMA
            found.append(KernelBuild(f"gate_up[{name}]", kernels.gate_up_kernel, signature, given, *tile))
            given = {**down_constants(config, wide), **absent}
            signature = {
                "h": hidden, "h_scale": "*u8", "w2": "*u8", "s2": scales, **lists, "y": "*bf16", **sizes,
                **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            tile = config.down_warps, config.num_stages, _MMA
            found.append(KernelBuild(f"down[{name}]", kernels.down_kernel, signature, given, *tile))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.moe.grouped import refusal

    return refusal(sizes["tokens"], sizes["d"], sizes["m"], sizes["top_k"])


def make(tokens: int, d: int, m: int, experts: int, top_k: int, generator: Any, device: Any) -> dict[str, Any]:
    """Rows, their rounding, ids and weights of each token, E4M3 experts and the shared expert's result."""
    import torch

    def packed(out: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of normal values, as trained weights have, and scales that keep the size of a product."""
        codes = torch.randn(experts, out, width, generator=generator, device=generator.device) * SPREAD
        scale = scale_bytes(generator, width, SPREAD, experts, out // 128, width // 128)
        return codes.clamp_(-448, 448).to(torch.float8_e4m3fn), scale

    (w13, s13), (w2, s2) = packed(2 * m, d), packed(d, m)
    made = rows(tokens, d, experts, top_k, generator) | {"w13": w13, "s13": s13, "w2": w2, "s2": s2}
    return {name: value.to(device) for name, value in made.items()}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernels over E4M3 experts."""
    from wellhead.ops.moe.fp8_api import plan
    from wellhead.ops.moe.packed import PackedWeights

    (tokens, d), top_k, experts = inputs["x"].shape, inputs["ids"].shape[1], inputs["w2"].shape[0]
    layer = plan(tokens, d, inputs["w13"].shape[1] // 2, experts, top_k, LIMIT, device=inputs["x"].device)
    return over_lists(inputs, layer, PackedWeights(inputs["w13"], inputs["s13"], inputs["w2"], inputs["s2"]))


def cases() -> tuple[Case, ...]:
    """V4-Flash's experts in E4M3."""
    found = []
    for tokens in TOKENS:
        sizes = {"tokens": tokens, "d": D, "m": M, "experts": POOL, "top_k": TOP_K, "weight_bits": 8}
        distinct = POOL * (1 - (1 - TOP_K / POOL) ** tokens)  # expected; a run counts its own
        weights = int(distinct * 3 * M * D * (1 + 2.0**-14))
        moved = weights + tokens * (D + D // 128 + 4 * D + 2 * TOP_K * (2 * M + 2 * D))
        draw = partial(make, tokens, D, M, POOL, TOP_K)
        found.append(Case(f"fp8,M={tokens},pool={POOL}", sizes, draw, moved, 6 * tokens * TOP_K * M * D))
    return tuple(found)
