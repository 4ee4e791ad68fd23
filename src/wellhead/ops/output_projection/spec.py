"""SPEC of the grouped output projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

SHAPES = ((64, 8, 1024), (128, 16, 1024))  # (heads, groups, rows a group) of V4-Flash and V4-Pro
HEADS_A_GROUP = (8, 2)  # V4's, the embedded checkpoint's
TOKENS = (1, 2, 16, 32, 64, 4096)


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.output_projection import kernels
    from wellhead.ops.output_projection.api import constants
    from wellhead.ops.output_projection.configs import FEW_TOKENS, choose_config

    found = []
    for per_group in HEADS_A_GROUP:
        for tokens in TOKENS:
            config = choose_config(tokens)
            for rounds in (False, True) if tokens > FEW_TOKENS else (False,):
                given: dict[str, Any] = {**constants(config, per_group, rounds), "PDL": True}
                pointers = {"o": "*bf16", "w": "*u8", "w_scale": "*u8", "z": "*u8" if rounds else "*bf16"}
                if not config.gemv:
                    pointers |= {"z_scale": "*u8"}
                    given |= dict.fromkeys(() if rounds else ("z_scale",))
                signature = {**pointers, "TOKENS": "i32", "N": "i32:16", **dict.fromkeys(given, "constexpr")}
                kernel = kernels.grouped_gemv_kernel if config.gemv else kernels.tile_kernel
                kind = "gemv" if config.gemv else "tile" if tokens <= FEW_TOKENS else "large"
                name = f"{kind}[{config.tokens},heads={per_group}{',e4m3' if rounds else ''}]"
                mma = {} if config.gemv else dict.fromkeys(("sm89", "sm120", "sm121"), "f32.bf16.bf16.f32")
                if not config.gemv:
                    mma["sm90"] = "wgmma.mma_async.sync.aligned" if config.rows >= 64 else "f32.bf16.bf16.f32"
                found.append(KernelBuild(name, kernel, signature, given, config.num_warps, config.num_stages, mma))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.output_projection.api import supports as of

    return of(sizes["heads"], sizes["groups"], sizes["n"])


def make(tokens: int, heads: int, groups: int, n: int, generator: Any, device: Any) -> dict[str, Any]:
    """o, and a weight with its scales."""
    import torch

    from wellhead.formats import block_fp8

    on = {"generator": generator, "device": generator.device}
    k = heads // groups * 512
    weight, scale = block_fp8.quantize_weight(torch.randn(groups * n, k, **on) * k**-0.5)
    made = {"o": torch.randn(tokens, heads, 512, **on).bfloat16(), "weight": weight, "scale": scale}
    return {**{name: value.to(device) for name, value in made.items()}, "groups": groups}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    import torch

    from wellhead.ops.output_projection.api import plan

    (tokens, heads, _), (rows, _), groups = inputs["o"].shape, inputs["weight"].shape, inputs["groups"]
    z = torch.empty(tokens, rows, dtype=torch.bfloat16, device=inputs["o"].device)
    projection = plan(heads, groups, rows // groups)

    def run() -> torch.Tensor:
        projection.run(inputs["o"], inputs["weight"], inputs["scale"], z)
        return z

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.formats.block_fp8 import dequantize_weight
    from wellhead.ops.output_projection import reference

    weight = dequantize_weight(inputs["weight"], inputs["scale"]).unflatten(0, (inputs["groups"], -1))
    return lambda: reference.project(inputs["o"], weight).flatten(1)


def _case(tokens: int, heads: int, groups: int, n: int) -> Case:
    sizes = {"tokens": tokens, "heads": heads, "groups": groups, "n": n}
    weights = heads * 512 * n
    moved = weights + weights // 128**2 + 2 * tokens * (heads * 512 + groups * n)
    draw = partial(make, tokens, heads, groups, n)
    return Case(f"T={tokens},H={heads},G={groups},n={n}", sizes, draw, moved, 2 * tokens * weights)


SPEC = OpSpec(
    name="output_projection",
    summary="grouped output projection",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=101376, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, *SHAPES[0]) for tokens in (1, 4, 16, 64, 256, 4096))
    + tuple(_case(tokens, *SHAPES[1]) for tokens in (1, 16)),
    error=ErrorBudget(
        2.0**-7,
        2.0**-10,
        "products are exact; fp32 sums in another order move bf16's last bit, or more where they cancel",
    ),
    batch_invariant=False,
    batch_reason="1 and 2 tokens are summed on CUDA cores, more on tensor cores; within one power of two of tokens a "
    "row's bits do not depend on the others",
)
