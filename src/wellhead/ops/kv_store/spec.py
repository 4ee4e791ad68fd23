"""SPEC of the step's queries and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

EPS = 1e-6
PAGE = 256  # records of a window page


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.formats.kv_record import page_stride
    from wellhead.ops.kv_store import kernels
    from wellhead.ops.kv_store.api import constants
    from wellhead.ops.kv_store.configs import WARPS

    tensors = {
        "q": "*bf16", "q_out": "*bf16", "kv": "*bf16", "kv_out": "*bf16", "weight": "*bf16", "cache": "*u8",
        "slots": "*i64", "positions": "*i64", "freqs": "*fp32", "eps": "fp32", "HEADS": "i32", "KV_STRIDE": "i32:16",
    }  # fmt: skip
    found = []
    for keep in (False, True):
        given: dict[str, Any] = {**constants(PAGE, page_stride(PAGE)), "PDL": True}
        given |= {} if keep else {"kv_out": None}
        signature = {**tensors, **dict.fromkeys(given, "constexpr")}
        name = f"queries[page={PAGE}{',keep' if keep else ''}]"
        found.append(KernelBuild(name, kernels.kv_store_kernel, signature, given, WARPS))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.kv_store.api import supports as of

    return of(sizes["heads"], sizes["page"])


def make(tokens: int, heads: int, page: int, generator: Any, device: Any) -> dict[str, Any]:
    """Queries, records of groups of very different size, an empty cache and shuffled slots in it."""
    import torch

    from wellhead.formats import kv_record
    from wellhead.ops.rope.reference import frequencies

    on = {"generator": generator, "device": generator.device}
    size = 10.0 ** torch.linspace(1, -2, kv_record.DIM, device=generator.device)
    pages = 1 + -(-tokens // page)
    made = {
        "q": torch.randn(tokens, heads, kv_record.DIM, **on).bfloat16(),
        "kv": (torch.randn(tokens, kv_record.DIM, **on) * size).bfloat16(),
        "weight": (1 + 0.1 * torch.randn(kv_record.DIM, **on)).bfloat16(),
        "cache": kv_record.allocate_pages(pages, page),
        "slots": torch.randperm(pages * page, **on)[:tokens],
        "positions": torch.randint(0, 1 << 20, (tokens,), **on),
        "freqs": frequencies(64, 10000.0, None),
    }
    return {name: value.to(device) for name, value in made.items()} | {"page": page}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernel; its results are the queries and the rows that became records."""
    import torch

    from wellhead.ops.kv_store.api import plan

    q, kv = inputs["q"], inputs["kv"]
    q_out, kv_out, store = torch.empty_like(q), torch.empty_like(kv), plan(q.shape[1], inputs["page"], EPS)
    weight, cache, slots = inputs["weight"], inputs["cache"], inputs["slots"]

    def run() -> tuple[torch.Tensor, ...]:
        store.run(q, kv, weight, cache, slots, inputs["positions"], inputs["freqs"], q_out, kv_out)
        return q_out, kv_out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.norm_quant.reference import rms_norm
    from wellhead.ops.rope.reference import apply

    turn = partial(apply, positions=inputs["positions"], freqs=inputs["freqs"])
    q, kv = inputs["q"], inputs["kv"]

    def run() -> tuple[Any, ...]:
        return turn(rms_norm(q, None, EPS)), turn(rms_norm(kv, inputs["weight"], EPS))

    return run


def _case(tokens: int, heads: int, page: int) -> Case:
    sizes = {"tokens": tokens, "heads": heads, "page": page}
    moved = tokens * (heads * 2048 + 2048 + 584)
    draw = partial(make, tokens, heads, page)
    return Case(f"T={tokens},H={heads},P={page}", sizes, draw, moved, tokens * (heads + 1) * 2300)


SPEC = OpSpec(
    name="kv_store",
    summary="packed key-value records into pages",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=1024, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, heads, PAGE) for heads in (64, 128, 16) for tokens in (1, 4, 16, 64, 1024)),
    error=ErrorBudget(
        2.0**-6,
        2.0**-5,
        "bf16 rows: another order of the fp32 sum can move the norm's last bf16 bit, 2^-6 of values up to four, twice "
        "in a pair that the turn cancels, and the turn rounds once more; a record's bytes are exactly those of its row",
    ),
    batch_invariant=True,
    batch_reason="one program a record or four heads, each row summed in one order",
)
