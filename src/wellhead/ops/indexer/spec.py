"""SPEC of the indexer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

DECODE = ((1, 2048), (1, 65536), (4, 16384), (16, 16384))  # tokens (one a request), entries
PREFILL = ((512, 2048), (2048, 16384))  # tokens of one request, entries
HEADS = (64, 8)
RECORD = {"fp8": 132, "fp4": 68}
_MMA = dict.fromkeys(("sm89", "sm120"), "m16n8k32.row.col.f32.e4m3.e4m3.f32")


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.indexer import kernels, rounding
    from wellhead.ops.indexer.api import LAYOUTS, constants, rounding_constants
    from wellhead.ops.indexer.configs import QUERY_WARPS, choose_config

    sizes = {"TOKENS": "i32", "HEADS": "i32", "TABLE_WIDTH": "i32", "COLUMNS": "i32:16", "STRIDE": "i32:16"}
    tensors = {
        "weights": "*fp32", "cache": "*u8", "table": "*i32", "rows": "*i32", "lengths": "*i32", "logits": "*fp32",
    }  # fmt: skip
    found = []
    for name, layout in LAYOUTS.items():
        kernel = getattr(kernels, f"logits_{name}_kernel")
        query = {"q": "*u8"} if name == "fp8" else {"q": "*u8", "q_scale": "*u8"}
        for heads, chunked in ((64, False), (32, False), (16, False), (64, True), (32, True), (16, True), (8, True)):
            config = choose_config(1, heads, 65536, name, chunked=chunked)
            given = {**constants(config), "PDL": True}
            signature = {**query, **tensors, **sizes, **dict.fromkeys(given, "constexpr")}
            title = f"logits[{name},group={config.group},heads={config.heads}]"
            found.append(
                KernelBuild(title, kernel, signature, given, config.num_warps, config.num_stages, _MMA, not chunked)
            )
        given = {**rounding_constants(layout), "ONE": True, "PDL": True}
        for weights in ("*fp32", "*bf16"):
            signature = {
                "q": "*bf16", "positions": "*i64", "freqs": "*fp32", "weights": weights, "codes": "*u8",
                "tail": "*fp32" if name == "fp8" else "*u8", "scaled": "*fp32", "COUNT": "i32", "HEADS": "i32:16",
                "factor": "fp32", **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            title = f"round_query[{name},{weights[1:]}]"
            found.append(KernelBuild(title, rounding.round_query_kernel, signature, given, QUERY_WARPS))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.indexer.api import supports as of

    return of(sizes["heads"], sizes["columns"])


def make(
    name: str, tokens: int, requests: int, heads: int, columns: int, generator: Any, device: Any
) -> dict[str, Any]:
    """Rounded queries and `requests` full requests of `columns` keys; q_scale is there for FP4 only."""
    import torch

    from wellhead.formats import index_key, mxfp4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    pages = requests * columns // 64
    layout, write = {
        "fp8": (index_key.FP8, index_key.write_fp8), "fp4": (index_key.FP4, index_key.write_fp4)
    }[name]  # fmt: skip
    cache = index_key.allocate_pages(layout, pages, device=generator.device)
    write(cache, torch.arange(64 * pages, device=generator.device), normal(64 * pages, 128))
    q, weights = normal(tokens, heads, 128), normal(tokens, heads) * (128 * 64) ** -0.5
    made = {"cache": cache}
    if name == "fp8":
        codes, scale = index_key.quantize_fp8(q)
        made |= {"q": codes, "weights": weights * scale}
    else:
        codes, scale = mxfp4.quantize(q)
        made |= {"q": codes, "q_scale": scale, "weights": weights}
    order = torch.randperm(pages, generator=generator, device=generator.device)
    made |= {
        "table": order.int().reshape(requests, -1), "rows": (torch.arange(tokens) * requests // tokens).int(),
        "lengths": torch.full((tokens,), columns, dtype=torch.int32),
    }  # fmt: skip
    return {name: value.to(device) for name, value in made.items()}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernel on a case; tokens of one request are neighbours, so a case of fewer requests is a chunked one."""
    import torch

    from wellhead.formats import index_key
    from wellhead.ops.indexer.api import Query, plan

    (tokens, heads, _), table = inputs["q"].shape, inputs["table"]
    layout = index_key.FP4 if "q_scale" in inputs else index_key.FP8
    logits = plan(tokens, heads, table.shape[1] * 64, layout, chunked=len(table) < tokens)
    out = torch.empty(tokens, logits.columns, device=table.device)
    query = Query(inputs["q"], inputs.get("q_scale"))

    def run() -> torch.Tensor:
        weights, rows, lengths = inputs["weights"], inputs["rows"], inputs["lengths"]
        logits.run(query, weights, inputs["cache"], table, rows, lengths, out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """Request by request over all its keys."""
    import torch

    from wellhead.formats import e4m3, mxfp4
    from wellhead.ops.indexer import reference

    table, rows = inputs["table"].long(), inputs["rows"]
    slots = (table.unsqueeze(-1) * 64 + torch.arange(64, device=table.device)).flatten(1)

    def run() -> Any:
        scale, q = inputs.get("q_scale"), inputs["q"]
        wide = e4m3.decode(q) if scale is None else mxfp4.dequantize(q, scale)
        parts = [(wide[rows == r], slots[r], inputs["weights"][rows == r]) for r in range(len(table))]
        return torch.cat([reference.paged_logits(q, inputs["cache"], s, w) for q, s, w in parts])

    return run


def _case(name: str, tokens: int, requests: int, heads: int, columns: int) -> Case:
    sizes = {"tokens": tokens, "requests": requests, "heads": heads, "columns": columns, "fp4": int(name == "fp4")}
    moved = requests * columns * RECORD[name] + tokens * (columns * 4 + heads * RECORD[name])
    draw = partial(make, name, tokens, requests, heads, columns)
    title = f"{name} {'decode' if tokens == requests else 'prefill'} T={tokens},H={heads},C={columns}"
    return Case(title, sizes, draw, moved, 2 * tokens * heads * columns * 128)


SPEC = OpSpec(
    name="indexer",
    summary="index logits over paged keys",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=101376, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=(
        *(_case(name, tokens, tokens, heads, n) for name in RECORD for heads in HEADS for tokens, n in DECODE),
        *(_case(name, tokens, 1, 64, n) for name in RECORD for tokens, n in PREFILL),
    ),
    error=ErrorBudget(
        2.0**-10,
        2.0**-10,
        "tensor cores align the E4M3 products of a step to the largest and keep 13 bits behind its first; codes "
        "themselves are exact, logits are of size one",
    ),
    batch_invariant=False,
    batch_reason="how many tokens share a tile of keys is planned; under one plan a token's bits do not depend on the "
    "others",
)
