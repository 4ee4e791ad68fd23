"""SPEC of top-k."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

_WIDTHS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)


def builds() -> tuple[KernelBuild, ...]:
    """Every cut of a row."""
    from wellhead.ops.topk.api import FILL
    from wellhead.ops.topk.configs import choose_config
    from wellhead.ops.topk.kernels import choose_row
    from wellhead.ops.topk.long_kernels import bound_share, choose_long, list_part

    # rows of whole pages, so that four logits are one load
    row = {"logits_ptr": "*fp32", "logits_stride": "i32:16", "lengths_ptr": "*i32"}
    state = {"bounds_ptr": "*i32", "counts_ptr": "*i32", "listed_ptr": "*i32"}
    sizes = {"columns": "i32:16", "k": "i32:16", "region": "i32"}
    found = []

    def build(name: str, kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], warps: int) -> None:
        known = {key: kind for key, kind in signature.items() if key in kernel.arg_names}
        constants = {**constants, "PDL": True}
        known.update(dict.fromkeys(constants, "constexpr"))
        found.append(KernelBuild(name, kernel, known, constants, warps))

    cuts = tuple({choose_config(columns): None for columns in _WIDTHS})
    for cut in (cut for cut in cuts if cut.splits):
        name, shared = f"splits={cut.splits},block={cut.block}", {"SPLITS": cut.splits, "BLOCK": cut.block}
        build(f"bound_share[{name}]", bound_share, {**row, **state, **sizes}, shared, cut.num_warps)
        build(f"list_part[{name}]", list_part, {**row, **state, **sizes}, shared, cut.num_warps)
    for page, out in ((64, "*i64"), (64, "*i32"), (0, "*i64")):
        written = {"table_ptr": "*i32", "table_stride": "i32", "out_ptr": out, "out_stride": "i32:16"}
        signature, kind = {**row, **state, **written, **sizes}, f"page={page},out={out[1:]}"
        given = {"PAGE": page, "FILL": FILL}
        for cut in (cut for cut in cuts if not cut.splits):
            name = f"choose_row[{kind},block={cut.block}]"
            build(name, choose_row, signature, {**given, "BLOCK": cut.block}, cut.num_warps)
        for cut in {cut.splits: cut for cut in cuts if cut.splits}.values():
            split = {"SPLITS": cut.splits, "BLOCK": cut.last_block}
            name = f"choose_long[{kind},splits={cut.splits}]"
            build(name, choose_long, signature, {**given, **split}, cut.last_warps)
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
    moved = rows * (columns * 4 + k * 8)  # each logit once from memory; the second reading finds it in the L2
    return Case(f"k={k} of {columns}, {rows} rows", sizes, partial(make, rows, columns, k), moved)


SPEC = OpSpec(
    name="topk",
    summary="the k best entries of each query, as cache slots",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=32768, builds=builds, supports=supports, prepare=prepare),
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
