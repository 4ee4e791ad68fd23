"""SPEC of the rotation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

DIMS = (512, 128)  # attention heads and index heads


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.rope import kernels
    from wellhead.ops.rope.api import constants
    from wellhead.ops.rope.configs import WARPS

    found = []
    for dim, inverse, copy in product(DIMS, (False, True), (False, True)):
        given = {**constants(dim, inverse, copy), "PDL": True}
        signature = {
            "x": "*bf16", "out": "*bf16", "positions": "*i64", "freqs": "*fp32", "HEADS": "i32",
            **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        name = f"{'inverse' if inverse else 'forward'}[d={dim}{',copy' if copy else ''}]"
        found.append(KernelBuild(name, kernels.rope_kernel, signature, given, WARPS))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.rope.api import supports as of

    return of(sizes["heads"], sizes["dim"])


def make(tokens: int, heads: int, dim: int, generator: Any, device: Any) -> dict[str, Any]:
    """x, positions up to a million and the plain frequencies."""
    import torch

    from wellhead.ops.rope.reference import frequencies

    on = {"generator": generator, "device": generator.device}
    return {
        "x": torch.randn(tokens, heads, dim, **on).bfloat16().to(device),
        "positions": torch.randint(0, 1 << 20, (tokens,), **on).to(device),
        "freqs": frequencies(64, 10000.0, None).to(device),
    }


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The inverse, into another tensor."""
    import torch

    from wellhead.ops.rope.api import plan

    _, heads, dim = inputs["x"].shape
    rope, out = plan(heads, dim, inverse=True), torch.empty_like(inputs["x"])

    def run() -> torch.Tensor:
        rope.run(inputs["x"], inputs["positions"], inputs["freqs"], out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.rope import reference

    return lambda: reference.apply(inputs["x"], inputs["positions"], inputs["freqs"], inverse=True)


def _case(tokens: int, heads: int, dim: int) -> Case:
    sizes = {"tokens": tokens, "heads": heads, "dim": dim}
    draw = partial(make, tokens, heads, dim)
    return Case(f"T={tokens},H={heads},d={dim}", sizes, draw, tokens * heads * dim * 4, tokens * heads * 192)


SPEC = OpSpec(
    name="rope",
    summary="rotary position embedding and its inverse",
    impls=(
        Impl("triton", needs=("kernels",), builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, heads, 512) for heads in (64, 128, 16) for tokens in (1, 4, 16, 64, 1024)),
    error=ErrorBudget(
        2.0**-7,
        2.0**-18,
        "cosine and sine within 2^-23 move bf16's last bit at most; the absolute part is for pairs of size up to ten "
        "that cancel",
    ),
    batch_invariant=True,
    batch_reason="a program is one token's heads; nothing is summed",
)
