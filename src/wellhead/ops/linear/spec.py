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
FLASH = SHAPES[:6]
TOKENS = (1, 2, 4, 8, 16, 32, 64)
MANY_TOKENS = (256, 4096)
_MMA = dict.fromkeys(("sm89", "sm120"), "e4m3.e4m3") | {"sm90": "wgmma.mma_async.sync.aligned"}


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.linear import kernels
    from wellhead.ops.linear.api import constants
    from wellhead.ops.linear.configs import choose_config

    found = []
    for rounds in (False, True):
        configs = {choose_config(tokens, n, k, rounds=rounds): None for n, k in SHAPES for tokens in TOKENS}
        for config in configs:
            given: dict[str, Any] = {**constants(config, rounds), "PDL": True}
            signature = {
                "x": "*bf16" if rounds else "*u8", "x_scale": "*u8", "w": "*u8", "w_scale": "*u8", "y": "*bf16",
                **({} if config.gemv else {"TOKENS": "i32"}), "N": "i32:16", "K": "i32:16",
                **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            if rounds:
                given, signature = {**given, "x_scale": None}, {**signature, "x_scale": "constexpr"}
            tile = f"{config.tokens}x{config.rows}x{config.inputs}"
            name = f"{'gemv' if config.gemv else 'few'}[{tile},{'bf16' if rounds else 'e4m3'}]"
            kernel = kernels.fp8_gemv_kernel if config.gemv else kernels.few_kernel
            found.append(KernelBuild(name, kernel, signature, given, config.num_warps, 3, {} if config.gemv else _MMA))
    return (*found, *large_builds(), prefetch_build())


def prefetch_build() -> KernelBuild:
    """What brings a later product's weights to L2."""
    from wellhead.ops.linear.prefetch import AT_ONCE, MOST, SECTOR, TURNS
    from wellhead.ops.linear.prefetch_kernels import prefetch_kernel

    given = {"SECTOR": SECTOR, "AT_ONCE": AT_ONCE, "TURNS": TURNS}
    signature = {f"start{n}": "*u8" for n in range(MOST)} | {f"size{n}": "i32" for n in range(MOST)}
    return KernelBuild("prefetch", prefetch_kernel, {**signature, **dict.fromkeys(given, "constexpr")}, given)


def large_builds() -> tuple[KernelBuild, ...]:
    """The kernel for many tokens. Triton has FP8 instructions for sm_121 from 3.9 on; before, the codes become f16."""
    from wellhead.ops.linear.api import large_constants
    from wellhead.ops.linear.large_configs import choose_large
    from wellhead.ops.linear.large_kernels import large_kernel

    widened, native = dict.fromkeys(("sm121@3.6", "sm121@3.7"), "f32.f16.f16.f32"), {"sm121@3.9": "e4m3.e4m3"}
    found = []
    for config in {choose_large(tokens, n): None for n, _ in SHAPES for tokens in MANY_TOKENS}:
        given = {**large_constants(config), "PDL": True}
        signature = {
            "x": "*u8", "x_scale": "*u8", "w": "*u8", "w_scale": "*u8", "y": "*bf16",
            "TOKENS": "i32", "N": "i32:16", "K": "i32:16", **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        name, mma = f"large[{config.tokens},{config.rows}]", {**_MMA, **widened, **native}
        found.append(KernelBuild(name, large_kernel, signature, given, config.num_warps, config.num_stages, mma))
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
    summary="block-FP8 linear layers",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=101376, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, n, k) for n, k in SHAPES for tokens in (1, 4, 16, 64))
    + (_case(3, 200, 384),)
    + tuple(_case(tokens, n, k) for n, k in FLASH for tokens in MANY_TOKENS),
    error=ErrorBudget(
        2.0**-7,
        2.0**-9,
        "another order of the fp32 sums moves bf16's last bit; the absolute part, for outputs of size one, is for sm89 "
        "and sm90, whose FP8 products keep 13 fraction bits of a sum (simulated: 1.3e-4 rms, none of 10^5 over 2^-10)",
    ),
    batch_invariant=False,
    batch_reason="the tile, and for one token the kernel, follow the number of tokens: sums are taken in other orders; "
    "within one power of two of tokens a row's bits do not depend on the others",
)
