"""SPEC of routing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

SCALE = 1.5
SHAPES = ((4096, 256, 6), (7168, 384, 6))  # width, experts, top-k
_MMA = {arch: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" for arch in ("sm80", "sm89", "sm120", "sm121")}


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.routing.api import CHOOSE_T, CHUNK, power_of_two
    from wellhead.ops.routing.configs import choose_config, wide_step
    from wellhead.ops.routing.kernels import route, route_by_token
    from wellhead.ops.routing.list_kernels import list_tokens

    out = {"ids_ptr": "*i32", "weights_ptr": "*fp32"}
    written = {"slots_ptr": "*i32", "block_expert_ptr": "*i32", "first_expert": "i32", "experts": "i32"}
    left = {**dict.fromkeys(("slots_ptr", "block_expert_ptr"), "constexpr"), "first_expert": "i32", "experts": "i32"}
    none = {"slots_ptr": None, "block_expert_ptr": None}
    found = []
    for width, experts, top_k in SHAPES:
        shape = {"D": width, "E": experts, "K": top_k, "K_PAD": power_of_two(top_k)}
        for name, tokens in (("one", 1), ("few", 64), ("many", 65)):
            c = choose_config(tokens, width)
            given = {
                **shape, "E_PAD": power_of_two(experts), "BLOCK_T": c.block_t, "BLOCK_E": c.block_e,
                "BLOCK_D": c.block_d, "CHOOSE_T": min(CHOOSE_T, c.block_t), "PDL": True,
                **({} if tokens == 1 else none),
            }  # fmt: skip
            signature = {
                "x_ptr": "*bf16", "x_stride": "i32:16", "gate_ptr": "*bf16", "bias_ptr": "*fp32", "owner_ptr": "*i64",
                "scores_ptr": "*fp32", "arrived_ptr": "*i32", **out,
                **(written if tokens == 1 else left), "tokens": "i32", "scale": "fp32",
                **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            title, mma = f"route[d={width},experts={experts},{name}]", _MMA if tokens > 1 else {}
            found.append(KernelBuild(title, route, signature, given, c.num_warps, c.num_stages, mma))
        for name, absent, lists in (("one", {}, written), ("more", none, left)):
            given = {**shape, "BLOCK_D": wide_step(width), "PDL": True, **absent}
            signature = {
                "x_ptr": "*bf16", "x_stride": "i32:16", "gate_ptr": "*bf16", "table_ptr": "*i32", "token_ptr": "*i64",
                "owner_ptr": "*i64", **out, **lists, "vocabulary": "i32", "scale": "fp32",
                **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            title = f"route_by_token[d={width},experts={experts},{name}]"
            found.append(KernelBuild(title, route_by_token, signature, given))
        for block in (16, 64, 128):
            given = {"E": experts, "E_PAD": power_of_two(experts), "BLOCK": block, "CHUNK": CHUNK, "PDL": True}
            tensors = ("ids_ptr", "slots_ptr", "counts_ptr", "offsets_ptr", "block_expert_ptr")
            sizes = ("numel", "capacity", "first_expert")
            signature = {**dict.fromkeys(tensors, "*i32"), **dict.fromkeys(sizes, "i32")}
            signature.update(dict.fromkeys(given, "constexpr"))
            found.append(KernelBuild(f"list_tokens[experts={experts},block={block}]", list_tokens, signature, given))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.routing.api import supports as of

    return of(sizes["tokens"], sizes["width"], sizes["experts"], sizes["top_k"])


def make(tokens: int, width: int, experts: int, top_k: int, generator: Any, device: Any) -> dict[str, Any]:
    """x, gate and bias of one case, on grids so coarse that every sum is exact: no choice hangs on rounding."""
    import torch

    def grid(most: int, step: float, *shape: int) -> torch.Tensor:
        drawn = torch.randint(-most, most + 1, shape, generator=generator, device=generator.device)
        return (drawn * step).to(device)

    return {
        "x": grid(4, 0.25, tokens, width).bfloat16(),
        "gate": grid(3, 2.0**-7, experts, width).bfloat16(),
        "bias": grid(32, 2.0**-7, experts).float(),
        "top_k": top_k,
    }


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """Affinities, ids and weights."""
    import torch

    from wellhead.ops.routing.api import plan

    x, top_k = inputs["x"], inputs["top_k"]
    tokens, width = x.shape
    router = plan(tokens, width, len(inputs["gate"]), top_k, SCALE, device=x.device)
    ids = torch.empty(len(x), top_k, dtype=torch.int32, device=x.device)
    weights = torch.empty(len(x), top_k, device=x.device)

    def run() -> tuple[torch.Tensor, ...]:
        router.choose(x, inputs["gate"], inputs["bias"], ids, weights)
        return router.scores, ids, weights

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.routing import reference

    def run() -> tuple[Any, ...]:
        scores = reference.affinity(inputs["x"], inputs["gate"])
        return scores, *reference.choose(scores, inputs["top_k"], SCALE, inputs["bias"])

    return run


def case(tokens: int, width: int, experts: int, top_k: int) -> Case:
    sizes = {"tokens": tokens, "width": width, "experts": experts, "top_k": top_k}
    moved = 2 * width * (experts + tokens) + 4 * experts + 8 * tokens * top_k
    return Case(
        f"{tokens} tokens, d={width}, {top_k} of {experts}", sizes, partial(make, tokens, width, experts, top_k), moved,
        2 * tokens * width * experts,
    )  # fmt: skip


SPEC = OpSpec(
    name="routing",
    summary="experts of each token, weights and token lists",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=65536, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(case(tokens, *shape) for shape in SHAPES for tokens in (1, 4, 16, 64, 256, 4096)),
    error=ErrorBudget(
        2e-5, 2e-6, "fp32 sums of d products in two orders; the choice is exact where affinities differ by more"
    ),
    batch_invariant=False,
    batch_reason="a plan's tile, and with it the order of the sum over d on some cards, depends on its number of "
    "tokens; within one plan a row does not depend on its neighbours. The lists are exact.",
)
