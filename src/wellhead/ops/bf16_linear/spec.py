"""SPEC of the products with bf16 weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

# rows of V4-Flash: what ratio 4 and ratio 128 take of the attention input (compressor; its indexer's compressor and
# weights), the vocabulary
SHAPES = (((2048, 512, 64), 4096), ((1024,), 4096), ((129280,), 4096))
_BF16 = "f32.bf16.bf16"
_MMA = dict.fromkeys(("sm80", "sm89", "sm120", "sm121"), f"m16n8k16.row.col.{_BF16}")


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.bf16_linear.api import constants
    from wellhead.ops.bf16_linear.configs import choose_config
    from wellhead.ops.bf16_linear.kernels import bf16_gemv_kernel, product_kernel

    found = []
    sizes = dict.fromkeys(("N0", "N1", "N", "K"), "i32:16")
    kinds: dict[Any, set[str]] = {}  # of the last part: the indexer's weights are bf16
    for n, k in SHAPES:
        for tokens in (1, 2, 32, 64, 128):
            kinds.setdefault(choose_config(tokens, sum(n), k), set()).add("bf16" if len(n) > 1 else "fp32")
    for config, those in kinds.items():
        for kind in sorted(those):
            given = {**constants(config), "PDL": True}
            signature = {"x": "*bf16", "w": "*bf16", "y0": "*fp32", "y1": "*fp32", "y2": f"*{kind}"}
            if config.gemv:
                signature |= {**sizes, **dict.fromkeys(given, "constexpr")}
                name, kernel, mma = f"gemv[{config.rows}x{config.inputs},{kind}]", bf16_gemv_kernel, {}
            else:
                signature |= {"TOKENS": "i32", **sizes, "X_STRIDE": "i32:16", **dict.fromkeys(given, "constexpr")}
                name, kernel, mma = f"product[{config.tokens}x{config.rows},{kind}]", product_kernel, _MMA
            found.append(KernelBuild(name, kernel, signature, given, config.num_warps, 3, mma))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.bf16_linear.api import supports as of

    return of(sizes["n"], sizes["k"])


def make(tokens: int, parts: tuple[int, ...], k: int, generator: Any, device: Any) -> dict[str, Any]:
    """x, and weights that keep its size, one behind the other."""
    import torch

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    made = {"x": normal(tokens, k).bfloat16(), "weight": (normal(sum(parts), k) * k**-0.5).bfloat16()}
    return {"parts": parts, **{name: value.to(device) for name, value in made.items()}}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """fp32 sums as they are."""
    import torch

    from wellhead.ops.bf16_linear.api import plan

    x, weight = inputs["x"], inputs["weight"]
    product = plan(inputs["parts"], weight.shape[1])
    out = tuple(torch.empty(len(x), part, device=x.device) for part in product.parts)

    def run() -> tuple[torch.Tensor, ...]:
        product.run(x, weight, *out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.bf16_linear import reference

    return lambda: reference.product(inputs["x"], inputs["weight"]).split(inputs["parts"], dim=1)


def _case(tokens: int, parts: tuple[int, ...], k: int) -> Case:
    n = sum(parts)
    moved = 2 * n * k + tokens * (2 * k + 4 * n)
    draw = partial(make, tokens, parts, k)
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
