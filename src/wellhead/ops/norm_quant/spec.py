"""SPEC of the norm and rounding of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes
from wellhead.ops.card import EARLY

EPS = 1e-6
WIDTHS = (256, 1024, 1536, 2048, 3072, 4096, 7168, 8192, 16384)  # embedded checkpoint; latents, widths, groups of V4


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.norm_quant import kernels
    from wellhead.ops.norm_quant.api import constants
    from wellhead.ops.norm_quant.configs import warps_of

    found = []
    for d in WIDTHS:
        for kind, absent in (
            ("round", ("weight", "normed", "halves")), ("round,halves", ("weight", "normed", "codes")),
            ("round,both", ("weight", "normed")),
            ("norm", ("normed", "halves")), ("norm,keep", ("halves",)), ("norm,keep,halves", ()),
        ):  # fmt: skip
            given: dict[str, Any] = {**constants(d), **dict.fromkeys(absent), "PDL": EARLY}
            signature = {
                "x": "*bf16", "weight": "*bf16", "normed": "*bf16", "codes": "*u8", "halves": "*u8", "scale": "*u8",
                "eps": "fp32", "X_STRIDE": "i32:16", **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            found.append(KernelBuild(f"{kind}[{d}]", kernels.norm_quant_kernel, signature, given, warps_of(d)))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.norm_quant.api import supports as of

    return of(sizes["d"])


def make(tokens: int, d: int, generator: Any, device: Any) -> dict[str, Any]:
    """x of groups of very different size, and a weight around one."""
    import torch

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    size = 10.0 ** torch.linspace(-2, 2, d, device=generator.device)
    x = normal(tokens, d) * size[torch.randperm(d, generator=generator, device=generator.device)]
    return {"x": x.bfloat16().to(device), "weight": (1 + 0.1 * normal(d)).bfloat16().to(device), "eps": EPS}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernel, keeping the normed row, which is what the error budget speaks of."""
    import torch

    from wellhead.ops.norm_quant.api import plan

    tokens, d = inputs["x"].shape
    codes = torch.empty(tokens, d, dtype=torch.float8_e4m3fn, device=inputs["x"].device)
    scale = torch.empty(tokens, d // 128, dtype=torch.uint8, device=inputs["x"].device)
    normed, norm = torch.empty_like(inputs["x"]), plan(d, inputs["eps"])

    def run() -> torch.Tensor:
        norm.run(inputs["x"], inputs["weight"], codes, scale, normed)
        return normed

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.norm_quant import reference

    return lambda: reference.rms_norm(inputs["x"], inputs["weight"], inputs["eps"])


def _case(tokens: int, d: int) -> Case:
    moved = tokens * (5 * d + d // 128) + 2 * d
    return Case(f"T={tokens},d={d}", {"tokens": tokens, "d": d}, partial(make, tokens, d), moved, 5 * tokens * d)


SPEC = OpSpec(
    name="norm_quant",
    summary="RMS norm and rounding to e4m3 with one-byte scales",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=16384, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
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
