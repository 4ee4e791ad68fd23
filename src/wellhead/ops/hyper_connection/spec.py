"""What the hyper-connection kernels ship and claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes
from wellhead.ops.card import EARLY
from wellhead.ops.hyper_connection import configs
from wellhead.ops.hyper_connection.configs import PRE_ROWS, STREAMS

WIDTHS = (256, 4096, 7168)  # the embedded checkpoint, V4-Flash, V4-Pro
EPS, ITERATIONS = 1e-6, 20
BF16_MMA = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"

CODES = ("codes_ptr", "halves_ptr")

def builds() -> tuple[KernelBuild, ...]:
    """Every variant that the launchers can ask for at the shipped widths."""
    return tuple(build for d in WIDTHS for build in _builds(d))


def _builds(d: int) -> Iterator[KernelBuild]:
    from wellhead.ops.hyper_connection import finish_kernels, kernels

    mma = dict.fromkeys(("sm80", "sm89", "sm90", "sm120", "sm121"), BF16_MMA)
    for name, m, mixes, places in (
        ("project", PRE_ROWS, False, 0), ("post_project", PRE_ROWS, True, 0), ("sum_post_project", PRE_ROWS, True, 6),
        ("head_project", STREAMS, False, 0),
    ):  # fmt: skip
        kinds = {"streams_ptr": "*bf16", "fn_ptr": "*fp32", "partial_ptr": "*fp32", "tokens": "i32", "tiles": "i32"}
        constants: dict[str, Any] = configs.project_constants(d, m, mixes, places)
        mixed = {"y_ptr": "*bf16", "post_ptr": "*fp32", "comb_ptr": "*fp32", "out_ptr": "*bf16"}
        summed = {"ids_ptr": "*i32", "last_ptr": "*bf16", "first": "i32", "count": "i32"}
        kinds |= (mixed if mixes else {}) | (summed if places else {})
        constants |= dict.fromkeys(() if mixes else mixed) | dict.fromkeys(() if places else summed)
        for tiles in (1, configs.MAX_TILES):
            title, stages = f"{name}[d={d},tiles={tiles}]", configs.project_stages(tiles)
            yield _build(title, kernels.project_kernel, kinds, constants, 4, stages, mma)
    for name, m, norm, rounds in (
        ("contract_norm", PRE_ROWS, True, ("codes_ptr",)), ("contract_norm,halves", PRE_ROWS, True, CODES),
        ("contract", PRE_ROWS, False, ()), ("head_contract", STREAMS, True, ()),
    ):  # fmt: skip
        kinds = {"streams_ptr": "*bf16", "partial_ptr": "*fp32", "base_ptr": "*fp32", "scale_ptr": "*fp32"}
        kinds |= {"out_ptr": "*bf16", "norm_eps": "fp32", "hc_eps": "fp32"}
        constants = configs.contract_constants(d, m, norm)
        for pointer, kind, present in (
            ("norm_ptr", "*bf16", norm), ("code_scale_ptr", "*u8", bool(rounds)),
            *((pointer, "*u8", pointer in rounds) for pointer in CODES),
        ):  # fmt: skip
            if present:
                kinds[pointer] = kind
            else:
                constants = {**constants, pointer: None}
        warps = configs.contract_warps(d)
        yield _build(f"{name}[d={d}]", finish_kernels.contract_kernel, kinds, constants, warps, 2, {})
        if m == PRE_ROWS:
            both = kinds | {"post_ptr": "*fp32", "comb_ptr": "*fp32", "iterations": "i32"}
            title = f"{name.replace('contract', 'finish')}[d={d}]"
            yield _build(title, finish_kernels.finish_kernel, both, constants, warps, 2, {})
    kinds = dict.fromkeys(("partial_ptr", "base_ptr", "scale_ptr", "post_ptr", "comb_ptr"), "*fp32")
    kinds |= {"norm_eps": "fp32", "hc_eps": "fp32", "iterations": "i32"}
    yield _build(f"mixing[d={d}]", finish_kernels.mixing_kernel, kinds, configs.mixing_constants(d, PRE_ROWS), 1, 2, {})
    kinds = dict.fromkeys(("y_ptr", "streams_ptr", "out_ptr"), "*bf16")
    kinds |= {"post_ptr": "*fp32", "comb_ptr": "*fp32", "tokens": "i32"}
    yield _build(f"post[d={d}]", kernels.post_kernel, kinds, dict(configs.post_constants(d)), 4, 2, {})


def _build(
    name: str,
    kernel: Any,
    kinds: dict[str, str],
    constants: dict[str, Any],
    warps: int,
    stages: int,
    mma: dict[str, str],
) -> KernelBuild:
    early = kernel.__name__ in ("contract_kernel", "finish_kernel")
    constants = {**constants, "PDL": EARLY if early else True}
    return KernelBuild(name, kernel, kinds | dict.fromkeys(constants, "constexpr"), constants, warps, stages, mma)


def supports(sizes: Sizes) -> str | None:
    """None, or why streams of that number and width cannot run."""
    return configs.why_not(sizes["d"], sizes["n"])


def make(sizes: Sizes) -> Any:
    """The function that draws a site's inputs: streams, y, previous weights, and the site's parameters."""

    def draw(generator: Any, device: Any) -> dict[str, Any]:
        import torch

        tokens, n, d = sizes["tokens"], sizes["n"], sizes["d"]

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=generator.device).to(device)

        def grid(low: int, high: int, step: float, *shape: int) -> torch.Tensor:
            """So coarse that the streams are exact sums, and no bf16 rounding hangs on their order."""
            drawn = torch.randint(low, high + 1, shape, generator=generator, device=generator.device)
            return (drawn * step).to(device)

        return {
            "streams": grid(-24, 24, 0.125, tokens, n, d).bfloat16(),
            "y": grid(-24, 24, 0.125, tokens, d).bfloat16(),
            "post_weight": grid(0, 64, 2.0**-5, tokens, n),
            "comb": grid(0, 32, 2.0**-6, tokens, n, n),
            "fn": normal(n * (n + 2), n * d) * (n * d) ** -0.5,
            "base": normal(n * (n + 2)),
            "scale": torch.tensor([1.0, 0.5, 2.0], device=device),
            "norm_weight": (1 + 0.1 * normal(d)).bfloat16(),
        }

    return draw


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """post + pre: the new streams, the normed contraction, post and comb."""
    import torch

    from wellhead.ops.hyper_connection import api

    streams = inputs["streams"]
    tokens, n, d = streams.shape
    made = api.plan(tokens, d, n, norm_eps=EPS, hc_eps=EPS, iterations=ITERATIONS, device=streams.device)
    site = api.Site(inputs["fn"], inputs["base"], inputs["scale"], inputs["norm_weight"])
    mixing = inputs["post_weight"], inputs["comb"]
    mixed, u, post, comb = torch.empty_like(streams), torch.empty_like(inputs["y"]), *map(torch.empty_like, mixing)

    def run() -> tuple[torch.Tensor, ...]:
        api.post_pre(made, inputs["y"], streams, *mixing, site, mixed, u, post, comb)
        return mixed, u, post, comb

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.hyper_connection import reference
    from wellhead.ops.norm_quant.reference import rms_norm

    def run() -> tuple[Any, ...]:
        streams = reference.post(inputs["y"], inputs["streams"], inputs["post_weight"], inputs["comb"])
        site = inputs["fn"], inputs["base"], inputs["scale"]
        u, post, comb = reference.pre(streams, *site, norm_eps=EPS, hc_eps=EPS, iterations=ITERATIONS)
        return streams, rms_norm(u, inputs["norm_weight"], EPS), post, comb

    return run


def _case(tokens: int, d: int) -> Case:
    sizes = {"tokens": tokens, "n": STREAMS, "d": d}
    # post+pre: streams read, written and read again by the contraction; y, out; fn once
    moved = tokens * (3 * STREAMS * d + 2 * d) * 2 + PRE_ROWS * STREAMS * d * 4
    return Case(
        f"post_pre[T={tokens},d={d}]", sizes, make(sizes), moved, 2 * tokens * STREAMS * d * (PRE_ROWS + STREAMS + 3)
    )


SPEC = OpSpec(
    name="hyper_connection",
    summary="mixing of the residual streams",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=75392, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(t, d) for d in (4096, 7168) for t in (1, 4, 16, 64, 256, 4096)) + (_case(3, 256),),
    error=ErrorBudget(
        2.0**-6,
        2.0**-16,
        "bf16 results: the fp32 sums differ from the reference's in order only, which moves at most the last of bf16's "
        "8 bits, once where the streams are contracted and once more where the norm follows; the absolute part is for "
        "results that cancel",
    ),
    batch_invariant=True,
    batch_reason="the split over d is fixed, every tile of 16 tokens runs the same instructions and a row of a "
    "tensor-core product depends on that row alone",
)
