"""SPEC of the products with bf16 weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

# (n, k) of V4-Flash: compressors of ratio 4, of ratio 128, of the indexer, the indexer's weights, the vocabulary
SHAPES = ((2048, 4096), (1024, 4096), (512, 4096), (64, 4096), (129280, 4096))
_BF16 = "f32.bf16.bf16"
_MMA = dict.fromkeys(("sm80", "sm89", "sm120", "sm121"), f"m16n8k16.row.col.{_BF16}")


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.bf16_linear.api import constants
    from wellhead.ops.bf16_linear.configs import choose_config
    from wellhead.ops.bf16_linear.kernels import product_kernel

    found = []
    for config in {choose_config(tokens, n): None for n, _ in SHAPES for tokens in (1, 32, 64, 128)}:
        for kind in ("fp32", "bf16"):
            given = {**constants(config), "PDL": False}
            signature = {
                "x": "*bf16", "w": "*bf16", "y": f"*{kind}", "TOKENS": "i32", "N": "i32:16", "K": "i32:16",
                "X_STRIDE": "i32:16", **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            name = f"product[{config.tokens}x{config.rows},{kind}]"
            found.append(KernelBuild(name, product_kernel, signature, given, config.num_warps, 3, _MMA))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.bf16_linear.api import supports as of

    return of(sizes["n"], sizes["k"])


def make(tokens: int, n: int, k: int, generator: Any, device: Any) -> dict[str, Any]:
    """x, and a weight that keeps its size."""
    import torch

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    made = {"x": normal(tokens, k).bfloat16(), "weight": (normal(n, k) * k**-0.5).bfloat16()}
    return {name: value.to(device) for name, value in made.items()}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """fp32 sums as they are."""
    import torch

    from wellhead.ops.bf16_linear.api import plan

    product, x, weight = plan(*inputs["weight"].shape), inputs["x"], inputs["weight"]
    out = torch.empty(len(x), len(weight), device=x.device)

    def run() -> torch.Tensor:
        product.run(x, weight, out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.bf16_linear import reference

    return lambda: reference.product(inputs["x"], inputs["weight"])


def _case(tokens: int, n: int, k: int) -> Case:
    moved = 2 * n * k + tokens * (2 * k + 4 * n)
    draw = partial(make, tokens, n, k)
    return Case(f"T={tokens},n={n},k={k}", {"tokens": tokens, "n": n, "k": k}, draw, moved, 2 * tokens * n * k)


SPEC = OpSpec(
    name="bf16_linear",
    summary="products with bf16 weights: compressors, the indexer's weights, the vocabulary",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=101376, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, n, k) for n, k in SHAPES for tokens in (1, 16, 64)) + (_case(4096, *SHAPES[0]),),
    error=ErrorBudget(2.0**-12, 2.0**-14, "exact products, fp32 sums of k terms in two orders"),
    batch_invariant=False,
    batch_reason="the tile follows the number of tokens; within one power of two a row's bits do not depend on others",
)
