"""SPEC of the norm and rounding of rows."""

from __future__ import annotations

from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

WIDTHS = (256, 1024, 1536, 4096, 7168)  # embedded checkpoint; query latents and hidden sizes of V4-Flash and V4-Pro


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.norm_quant import kernels
    from wellhead.ops.norm_quant.api import constants
    from wellhead.ops.norm_quant.configs import warps_of

    found = []
    for d in WIDTHS:
        for kind, absent in (("round", ("weight", "normed")), ("norm", ("normed",)), ("norm,keep", ())):
            given: dict[str, Any] = {**constants(d), **dict.fromkeys(absent)}
            signature = {
                "x": "*bf16", "weight": "*bf16", "normed": "*bf16", "codes": "*u8", "scale": "*u8", "eps": "fp32",
                "X_STRIDE": "i32:16", **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            found.append(KernelBuild(f"{kind}[{d}]", kernels.norm_quant_kernel, signature, given, warps_of(d)))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.norm_quant.api import supports as of

    return of(sizes["d"])


def make(tokens: int, d: int, generator: Any, device: Any) -> dict[str, Any]:
    """x of groups of very different size, and a weight around one."""
    import torch

    size = 10.0 ** torch.linspace(-2, 2, d)[torch.randperm(d, generator=generator)]
    x = (torch.randn(tokens, d, generator=generator) * size).bfloat16()
    weight = (1 + 0.1 * torch.randn(d, generator=generator)).bfloat16()
    return {"x": x.to(device), "weight": weight.to(device)}


def _case(tokens: int, d: int) -> Case:
    moved = tokens * (3 * d + d // 128) + 2 * d
    return Case(f"T={tokens},d={d}", {"tokens": tokens, "d": d}, partial(make, tokens, d), moved, 5 * tokens * d)


SPEC = OpSpec(
    name="norm_quant",
    summary="RMS norm and rounding to e4m3 with one-byte scales",
    impls=(
        Impl("triton", needs=("kernels", "fp8e4nv_conversion"), shared_bytes=101376, builds=builds, supports=supports),
        Impl(REFERENCE),
    ),
    cases=tuple(_case(tokens, d) for d in WIDTHS for tokens in (1, 4, 16, 64, 4096)),
    error=ErrorBudget(
        2.0**-7,
        0.0,
        "the bf16 row: another order of the fp32 sum and an approximate rsqrt (2^-22) move bf16's last bit at most; "
        "codes and scales are exactly those of the bf16 row",
    ),
    batch_invariant=True,
    batch_reason="one program a row, cut by the width alone",
)
