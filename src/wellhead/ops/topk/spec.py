"""SPEC of top-k."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

_STATE = {"counts_in_ptr": "*i32", "prefix_ptr": "*i32", "wanted_ptr": "*i32", "above_ptr": "*i32"}


def builds() -> tuple[KernelBuild, ...]:
    """Every pass at every number of splits."""
    from wellhead.ops.topk.api import FILL
    from wellhead.ops.topk.configs import BLOCK, SPLITS, Config, choose_config
    from wellhead.ops.topk.kernels import PASSES, choose_row, count_digits, write_chosen

    row = {"logits_ptr": "*fp32", "logits_stride": "i32", "lengths_ptr": "*i32"}
    warps = Config(1).num_warps
    found = []
    for short in {choose_config(1, columns): None for columns in (128, 512, 1024, 2048, 4096, 8192)}:
        for page, out in ((64, "*i64"), (64, "*i32"), (0, "*i64")):
            given = {"BLOCK": short.block, "PAGE": page, "FILL": FILL, "PDL": False}
            table = {"table_ptr": "*i32", "table_stride": "i32", "out_ptr": out, "out_stride": "i32"}
            signature = {**row, **table, "columns": "i32", "k": "i32", **dict.fromkeys(given, "constexpr")}
            name = f"choose_row[page={page},out={out[1:]},block={short.block}]"
            found.append(KernelBuild(name, choose_row, signature, given, short.num_warps))
    for splits in SPLITS:
        constants = {"SPLITS": splits, "BLOCK": BLOCK}
        for number in range(PASSES.value):
            given = {"PASS": number, "PDL": False, **constants}
            signature = {**row, **_STATE, "counts_ptr": "*i32", "columns": "i32", "k": "i32"}
            signature.update(dict.fromkeys(given, "constexpr"))
            found.append(
                KernelBuild(f"count_digits[pass={number},splits={splits}]", count_digits, signature, given, warps)
            )
        for page, out in ((64, "*i64"), (64, "*i32"), (0, "*i64")):
            given = {**constants, "PAGE": page, "FILL": FILL, "PDL": False}
            table = {"table_ptr": "*i32", "table_stride": "i32", "out_ptr": out, "out_stride": "i32"}
            signature = {**row, **_STATE, **table, "columns": "i32", "k": "i32", **dict.fromkeys(given, "constexpr")}
            name = f"write_chosen[page={page},out={out[1:]},splits={splits}]"
            found.append(KernelBuild(name, write_chosen, signature, given, warps))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.topk.api import supports as of

    return of(sizes["rows"], sizes["columns"], sizes["k"])


def make(rows: int, columns: int, k: int, generator: Any, device: Any) -> dict[str, Any]:
    """logits, lengths (full rows), table and out of one case."""
    import torch

    logits = torch.randn(rows, columns, generator=generator, device=generator.device).to(device)
    order = torch.randperm(rows * columns // 64, generator=generator, device=generator.device)
    table = order.int().reshape(rows, -1).to(device)
    lengths = torch.full((rows,), columns, dtype=torch.int32, device=device)
    out = torch.empty(rows, k, dtype=torch.int64, device=device)
    return {"logits": logits, "lengths": lengths, "table": table, "out": out}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.topk.api import plan

    logits, out = inputs["logits"], inputs["out"]
    rows, columns = logits.shape
    chosen = plan(rows, columns, out.shape[1], device=logits.device)

    def run() -> Any:
        chosen.run(logits, inputs["lengths"], inputs["table"], out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """Entries by the reference, then their slots."""
    from wellhead.ops.topk import reference
    from wellhead.ops.topk.api import PAGE

    def run() -> Any:
        entries = reference.select(inputs["logits"], inputs["lengths"], inputs["out"].shape[1])
        pages = inputs["table"].long().gather(1, entries.clamp_min(0) // PAGE)
        return (pages * PAGE + entries % PAGE).masked_fill(entries < 0, -1)

    return run


def case(rows: int, columns: int, k: int) -> Case:
    sizes = {"rows": rows, "columns": columns, "k": k}
    moved = rows * (columns * 4 + k * 8)  # each logit once from memory; the later passes find it in the L2
    return Case(f"k={k} of {columns}, {rows} rows", sizes, partial(make, rows, columns, k), moved)


SPEC = OpSpec(
    name="topk",
    summary="the k best entries of each query, as cache slots",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=8192, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=(
        case(1, 262144, 512),
        *(case(rows, 65536, 512) for rows in (1, 4, 16, 64)),
        case(1, 262144, 1024),
        *(case(1, columns, 512) for columns in (1024, 2048, 4096)),
        case(256, 8192, 512),
        case(64, 16384, 64),
    ),
    error=ErrorBudget(0, 0, "a choice among given numbers is exact, ties included"),
    batch_invariant=True,
    batch_reason="a program reads one row; the number of splits changes who writes an entry, not which is written",
)
