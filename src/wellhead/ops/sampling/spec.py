"""SPEC of sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

VOCABULARY = 129280


def builds() -> tuple[KernelBuild, ...]:
    """At every number of splits; the passes between the second and the last differ by a shift only."""
    from wellhead.ops.sampling import kernels
    from wellhead.ops.sampling.configs import BLOCK, SPLITS, Config

    warps = Config(1).num_warps
    row = {"logits_ptr": "*fp32", "logits_stride": "i32", "best_ptr": "*i64"}
    limits = {"temperature_ptr": "*fp32", "top_k_ptr": "*i32", "top_p_ptr": "*fp32"}
    found: list[KernelBuild] = []

    def add(name: str, kernel: Any, arguments: dict[str, str], given: dict[str, Any], num_warps: int) -> None:
        signature = {**arguments, **dict.fromkeys(given, "constexpr")}
        found.append(KernelBuild(name, kernel, signature, given, num_warps))

    for splits in SPLITS:
        shape = {"SPLITS": splits, "BLOCK": BLOCK}
        add(f"best_of_part[splits={splits}]", kernels.best_of_part, {**row, "columns": "i32"}, shape, warps)
        sums = ("count_sums_ptr", "first_sums_ptr", "sums_in_ptr", "sums_ptr", "state_ptr")
        arguments = {**row, **limits, **dict.fromkeys(sums, "*i64"), "columns": "i32"}
        for mass, top_k in ((0, True), (1, False), (1, True)):
            for number in (0, 1, kernels.PASSES - 1):
                given = {"MASS": mass, "TOP_K": top_k, "PASS": number, **shape}
                name = f"sum_digits[{'mass' if mass else 'count'},top_k={top_k},pass={number},splits={splits}]"
                add(name, kernels.sum_digits, arguments, given, warps)
        sums = ("count_sums_ptr", "first_sums_ptr", "mass_sums_ptr", "state_ptr", "drawn_ptr")
        drawing = {"seed_ptr": "*i64", "position_ptr": "*i64", **dict.fromkeys(sums, "*i64"), "columns": "i32"}
        for top_k, top_p in ((False, False), (True, False), (False, True), (True, True)):
            given = {"TOP_K": top_k, "TOP_P": top_p, **shape}
            name = f"draw_part[top_k={top_k},top_p={top_p},splits={splits}]"
            add(name, kernels.draw_part, {**row, **limits, **drawing}, given, warps)
        arguments = {"best_ptr": "*i64", "drawn_ptr": "*i64", "temperature_ptr": "*fp32", "out_ptr": "*i64"}
        for sampled in (False, True):
            given = {"SAMPLED": sampled, "SPLITS": splits}
            add(f"pick_token[sampled={sampled},splits={splits}]", kernels.pick_token, arguments, given, 1)
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.sampling.api import supports as of

    return of(sizes["rows"], sizes["columns"])


def make(rows: int, columns: int, restricted: bool, generator: Any, device: Any) -> dict[str, Any]:
    """Logits, and whether all the launches of a restricted draw run on them."""
    import torch

    logits = torch.randn(rows, columns, generator=generator, device=generator.device) * 4
    return {"logits": logits.to(device), "restricted": restricted}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """Greedy rows; or a draw from the one likeliest token, which has the same result by every other launch."""
    import torch

    from wellhead.ops.sampling.api import plan

    logits, restricted = inputs["logits"], inputs["restricted"]
    rows = len(logits)
    sampler = plan(*logits.shape, sampled=restricted, top_k=restricted, top_p=restricted, device=logits.device)
    if restricted:
        sampler.set([0.5] * rows, [1] * rows, [0.9] * rows, list(range(rows)))
    position = torch.arange(rows, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)

    def run() -> torch.Tensor:
        sampler.run(logits, position, out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: inputs["logits"].argmax(-1)


def case(rows: int, restricted: bool) -> Case:
    sizes = {"rows": rows, "columns": VOCABULARY}
    name = f"{rows} rows of {VOCABULARY}, {'top-k and top-p' if restricted else 'greedy'}"
    return Case(name, sizes, partial(make, rows, VOCABULARY, restricted), rows * (VOCABULARY * 4 + 8))


SPEC = OpSpec(
    name="sampling",
    summary="the next token from its logits",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=32768, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(case(rows, restricted) for rows in (1, 4, 16, 64, 256) for restricted in (False, True)),
    error=ErrorBudget(0, 0, "greedy and top-k choose among given numbers; a nucleus boundary is decided to 2^-22"),
    batch_invariant=True,
    batch_reason="a program reads one row, sums are of integers, and noise depends on seed, position and token only",
)
