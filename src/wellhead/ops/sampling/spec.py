"""SPEC of sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

VOCABULARY = 129280
KINDS = {
    "greedy": (False, 0, 1.0), "drawn": (True, 0, 1.0), "top-p": (True, 0, 0.9), "top-k and top-p": (True, 40, 0.9)
}  # fmt: skip
"""Whether rows are drawn from, of how many likeliest tokens (0: all), and of which part of the probability."""


def builds() -> tuple[KernelBuild, ...]:
    """At every number of splits; the passes between the second and the last differ by a shift only."""
    from wellhead.ops.sampling import kernels
    from wellhead.ops.sampling.configs import BLOCK, SPLITS, Config

    warps = Config(1).num_warps
    logits = {"logits_ptr": "*fp32", "logits_stride": "i32"}
    row = {**logits, "best_ptr": "*i64"}
    limits = {"temperature_ptr": "*fp32", "top_k_ptr": "*i32", "top_p_ptr": "*fp32"}
    found: list[KernelBuild] = []

    def add(name: str, kernel: Any, arguments: dict[str, str], given: dict[str, Any], num_warps: int) -> None:
        signature = {**arguments, **dict.fromkeys(given, "constexpr")}
        found.append(KernelBuild(name, kernel, signature, given, num_warps))

    noise, counted = {"seed_ptr": "*i64", "position_ptr": "*i64"}, {"count_sums_ptr": "*i32", "state_ptr": "*i64"}
    columns, chosen = {"columns": "i32"}, {"drawn_ptr": "*i64", "weights_ptr": "*i64"}
    before = {"drawn_before_ptr": "*i64", "weights_before_ptr": "*i64"}
    for splits in SPLITS:
        shape = {"SPLITS": splits, "BLOCK": BLOCK}
        add(f"best_of_part[splits={splits}]", kernels.best_of_part, {**row, **columns}, shape, warps)
        sums = {"sums_in_ptr": "*i32", "sums_ptr": "*i32", "state_ptr": "*i64"}
        arguments = {**logits, "temperature_ptr": "*fp32", "top_k_ptr": "*i32", **sums, **columns}
        for number in (0, 1, kernels.PASSES - 1):
            name = f"count_digits[pass={number},splits={splits}]"
            add(name, kernels.count_digits, arguments, {"PASS": number, **shape}, warps)
        for top_k in (False, True):
            for first in (True, False):
                given = {"TOP_K": top_k, "FIRST": first, **shape}
                name = f"[top_k={top_k},first={first},splits={splits}]"
                arguments = {
                    **row, **limits, **noise, **counted, "drawn_before_ptr": "*i64", "weights_ptr": "*i64",
                    "drawn_ptr": "*i64", **columns,
                }  # fmt: skip
                add("draw_part" + name, kernels.draw_part, arguments, given, warps)
                arguments = {
                    **row, **limits, **counted, "drawn_ptr": "*i64", **before, "weights_ptr": "*i64", **columns
                }  # fmt: skip
                add("weigh_part" + name, kernels.weigh_part, arguments, given, warps)
        arguments = {**row, **limits, **noise, **counted, **chosen, "out_ptr": "*i64", **columns}
        for sampled, top_k, top_p in (
            (False, False, False), (True, False, False), (True, True, False), (True, False, True), (True, True, True)
        ):  # fmt: skip
            given = {"SAMPLED": sampled, "TOP_K": top_k, "TOP_P": top_p, **shape}
            name = f"pick_token[sampled={sampled},top_k={top_k},top_p={top_p},splits={splits}]"
            add(name, kernels.pick_token, arguments, given, warps)
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.sampling.api import supports as of

    return of(sizes["rows"], sizes["columns"])


def make(rows: int, columns: int, kind: str, generator: Any, device: Any) -> dict[str, Any]:
    """Logits of one of the KINDS; in rows that are drawn from, one token has nearly all the probability."""
    import torch

    logits = torch.randn(rows, columns, generator=generator, device=generator.device) * 4
    if kind != "greedy":
        logits[torch.arange(rows), logits.argmax(-1)] += 40
    return {"logits": logits.to(device), "kind": kind}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The best token of every row, by the launches of the row's kind."""
    import torch

    from wellhead.ops.sampling.api import plan

    logits, (drawn, k, p) = inputs["logits"], KINDS[inputs["kind"]]
    rows = len(logits)
    sampler = plan(*logits.shape, sampled=drawn, top_k=k > 0, top_p=p < 1, device=logits.device)
    if drawn:
        sampler.set([1.0] * rows, [k] * rows, [p] * rows, list(range(rows)))
    position = torch.arange(rows, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)

    def run() -> torch.Tensor:
        sampler.run(logits, position, out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: inputs["logits"].argmax(-1)


def case(rows: int, kind: str) -> Case:
    sizes = {"rows": rows, "columns": VOCABULARY}
    name = f"{rows} rows of {VOCABULARY}, {kind}"
    return Case(name, sizes, partial(make, rows, VOCABULARY, kind), rows * (VOCABULARY * 4 + 8))


SPEC = OpSpec(
    name="sampling",
    summary="the next token from its logits",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=32768, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(case(rows, kind) for rows in (1, 4, 16, 64, 256) for kind in KINDS),
    error=ErrorBudget(0, 0, "greedy and top-k choose among given numbers; a nucleus boundary is decided to 2^-22"),
    batch_invariant=True,
    batch_reason="a program reads one row, sums are of integers, and noise depends on seed, position and token only",
)
