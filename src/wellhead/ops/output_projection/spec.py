"""SPEC of the grouped output projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

SHAPES = ((64, 8, 1024), (128, 16, 1024))  # (heads, groups, rows a group) of V4-Flash and V4-Pro
HEADS_A_GROUP = (8, 2)  # V4's, the embedded checkpoint's
TOKENS = (1, 2, 16, 32, 64, 256, 4096)


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.output_projection import kernels
    from wellhead.ops.output_projection.api import OutputProjection, constants
    from wellhead.ops.output_projection.configs import FEW_TOKENS, choose_config

    found = []
    for per_group in HEADS_A_GROUP:
        for tokens in TOKENS:
            config, turns = choose_config(tokens), OutputProjection.turns(tokens)
            for rounds in (False, True) if tokens > FEW_TOKENS else (False,):
                given: dict[str, Any] = {**constants(config, per_group, turns, rounds), "PDL": False}
                pointers = {"o": "*bf16", "w": "*u8", "w_scale": "*u8", "z": "*u8" if rounds else "*bf16"}
                if not config.gemv:
                    pointers |= {"positions": "*i64", "freqs": "*fp32", "z_scale": "*u8"}
                    given |= dict.fromkeys(() if turns else ("positions", "freqs"))
                    given |= dict.fromkeys(() if rounds else ("z_scale",))
                signature = {**pointers, "TOKENS": "i32", "N": "i32:16", **dict.fromkeys(given, "constexpr")}
                kernel = kernels.grouped_gemv_kernel if config.gemv else kernels.tile_kernel
                kind = "gemv" if config.gemv else "tile" if turns else "large"
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
    """o, positions up to a million, the plain frequencies, and a weight with its scales."""
    import torch

    from wellhead.formats import block_fp8
    from wellhead.ops.rope.reference import frequencies

    on = {"generator": generator, "device": generator.device}
    k = heads // groups * 512
    weight, scale = block_fp8.quantize_weight(torch.randn(groups * n, k, **on) * k**-0.5)
    made = {
        "o": torch.randn(tokens, heads, 512, **on).bfloat16(),
        "positions": torch.randint(0, 1 << 20, (tokens,), **on),
        "freqs": frequencies(64, 10000.0, None),
        "weight": weight,
        "scale": scale,
    }
    return {**{name: value.to(device) for name, value in made.items()}, "groups": groups}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """One launch for few tokens; for one or two heads that are turned already, as attention leaves them; for many a
    copy of o is turned in place and then projected.
    """
    import torch

    from wellhead.ops.output_projection.api import plan
    from wellhead.ops.output_projection.configs import FEW_TOKENS
    from wellhead.ops.rope.api import plan as plan_rope

    (tokens, heads, dim), (rows, _), groups = inputs["o"].shape, inputs["weight"].shape, inputs["groups"]
    z = torch.empty(tokens, rows, dtype=torch.bfloat16, device=inputs["o"].device)
    projection, rope = plan(heads, groups, rows // groups), plan_rope(heads, dim, inverse=True)
    turns = (inputs["positions"], inputs["freqs"])
    given = (inputs["weight"], inputs["scale"], z)
    o = inputs["o"]
    if not projection.turns(tokens):
        o = torch.empty_like(inputs["o"])
        rope.run(inputs["o"], *turns, o)

    def few() -> torch.Tensor:
        positions, freqs = turns if projection.turns(tokens) else (None, None)
        projection.run(o, positions, freqs, *given)
        return z

    def many() -> torch.Tensor:
        rope.run(inputs["o"], *turns, o)
        projection.run(o, None, None, *given)
        return z

    return few if tokens <= FEW_TOKENS else many


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.formats.block_fp8 import dequantize_weight
    from wellhead.ops.output_projection import reference

    weight = dequantize_weight(inputs["weight"], inputs["scale"]).unflatten(0, (inputs["groups"], -1))
    return lambda: reference.project(inputs["o"], inputs["positions"], inputs["freqs"], weight).flatten(1)


def _case(tokens: int, heads: int, groups: int, n: int) -> Case:
    sizes = {"tokens": tokens, "heads": heads, "groups": groups, "n": n}
    weights = heads * 512 * n
    moved = weights + weights // 128**2 + 2 * tokens * (heads * 512 + groups * n)
    draw = partial(make, tokens, heads, groups, n)
    return Case(f"T={tokens},H={heads},G={groups},n={n}", sizes, draw, moved, 2 * tokens * weights)


SPEC = OpSpec(
    name="output_projection",
    summary="heads turned back, then the grouped output projection",
    impls=(
        Impl(
            "triton",
            needs=("kernels",),
            shared_bytes=101376,
            builds=builds,
            supports=supports,
            prepare=prepare,
        ),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, *SHAPES[0]) for tokens in (1, 4, 16, 64, 256, 4096))
    + tuple(_case(tokens, *SHAPES[1]) for tokens in (1, 16)),
    error=ErrorBudget(
        2.0**-7,
        2.0**-9,
        "products are exact; fp32 sums in another order move bf16's last bit; a cosine within 2^-23 moves that of a "
        "turned dim once in 2^14: the absolute part, for outputs of size one, is one such dim of size four",
    ),
    batch_invariant=False,
    batch_reason="1 and 2 tokens are summed on CUDA cores, more on tensor cores, up to 64 with the turned dims last; "
    "within one power of two of tokens a row's bits do not depend on the others",
)
