"""SPEC of the block-FP8 linear layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

# (n, k) of V4-Flash and V4-Pro: wq_a with wkv, wq_b, wo_b, index wq_b, shared w1 with w3, shared w2
SHAPES = (
    (1536, 4096), (32768, 1024), (4096, 8192), (8192, 1024), (4096, 4096), (4096, 2048),
    (2048, 7168), (65536, 1536), (7168, 16384), (8192, 1536), (6144, 7168), (7168, 3072),
)  # fmt: skip
TOKENS = (1, 2, 4, 8, 16, 32, 64)
_MMA = dict.fromkeys(("sm89", "sm120"), "e4m3.e4m3") | {"sm90": "wgmma.mma_async.sync.aligned"}


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.linear import kernels
    from wellhead.ops.linear.api import constants
    from wellhead.ops.linear.configs import choose_config

    found = []
    for rounds in (False, True):
        configs = {choose_config(tokens, n, k, rounds=rounds): None for n, k in SHAPES for tokens in TOKENS}
        for config in configs:
            given: dict[str, Any] = {**constants(config, rounds), "PDL": False}
            signature = {
                "x": "*bf16" if rounds else "*u8", "x_scale": "*u8", "w": "*u8", "w_scale": "*u8", "y": "*bf16",
                **({} if config.gemv else {"TOKENS": "i32"}), "N": "i32:16", "K": "i32:16",
                **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            if rounds:
                given, signature = {**given, "x_scale": None}, {**signature, "x_scale": "constexpr"}
            tile = f"{config.tokens}x{config.rows}x{config.inputs}"
            name = f"{'gemv' if config.gemv else 'few'}[{tile},{'bf16' if rounds else 'e4m3'}]"
            kernel = kernels.gemv_kernel if config.gemv else kernels.few_kernel
            found.append(KernelBuild(name, kernel, signature, given, config.num_warps, 3, {} if config.gemv else _MMA))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.linear.api import supports as of

    return of(sizes["n"], sizes["k"])


def make(tokens: int, n: int, k: int, generator: Any, device: Any) -> dict[str, Any]:
    """x bf16, its E4M3 rows and scales, and a weight with its scales."""
    import torch

    from wellhead.formats import block_fp8

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    x = normal(tokens, k).bfloat16()
    codes, x_scale = block_fp8.quantize_rows(x)
    weight, scale = block_fp8.quantize_weight(normal(n, k) * k**-0.5)
    made = {"x": x, "codes": codes, "x_scale": x_scale, "weight": weight, "scale": scale}
    return {name: value.to(device) for name, value in made.items()}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernels over E4M3 rows."""
    import torch

    from wellhead.ops.linear.api import plan

    n, k = inputs["weight"].shape
    out = torch.empty(inputs["x"].shape[0], n, dtype=torch.bfloat16, device=inputs["x"].device)
    product = plan(n, k)

    def run() -> torch.Tensor:
        product.run(inputs["codes"], inputs["x_scale"], inputs["weight"], inputs["scale"], out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.formats.block_fp8 import dequantize_weight
    from wellhead.ops.linear import reference

    weight = dequantize_weight(inputs["weight"], inputs["scale"])
    return lambda: reference.linear(reference.round_input(inputs["x"]), weight)


def _case(tokens: int, n: int, k: int) -> Case:
    sizes = {"tokens": tokens, "n": n, "k": k}
    moved = n * k + -(-n // 128) * (k // 128) + tokens * (k + k // 128 + 2 * n)
    return Case(f"T={tokens},n={n},k={k}", sizes, partial(make, tokens, n, k), moved, 2 * tokens * n * k)


SPEC = OpSpec(
    name="linear",
    summary="block-FP8 linear layers and the grouped output projection",
    impls=(
        Impl(
            "triton",
            needs=("kernels", "fp8e4nv_conversion"),
            shared_bytes=101376,
            builds=builds,
            supports=supports,
            prepare=prepare,
        ),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, n, k) for n, k in SHAPES for tokens in (1, 4, 16, 64)) + (_case(3, 200, 384),),
    error=ErrorBudget(
        2.0**-7,
        2.0**-7,
        "bf16's last bit; and Hopper's E4M3 products keep 13 bits below the largest of a sum (DeepSeek-V3 report, "
        "section 3.5.2), which a result that cancels shows: 7e-4 of the typical size, in norm",
    ),
    batch_invariant=False,
    batch_reason="the tile, and for one token the kernel, follow the number of tokens: sums are taken in other orders; "
    "within one power of two of tokens a row's bits do not depend on the others",
)
