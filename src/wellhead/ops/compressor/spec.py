"""SPEC of the compressor, decode step and prefill."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes
from wellhead.ops.compressor.drawing import make, make_prefill, prepare, prepare_reference

if TYPE_CHECKING:
    from wellhead.formats.paged import PagedLayout

CHUNKS = ((256, 4), (4096, 4))  # tokens and requests of a prefill
FORMS = {"c4": (4, 512, 64), "c4 keys": (4, 128, 0), "c128": (128, 512, 2)}  # ratio, dim, records a page (0: keys)


def _built() -> Iterator[tuple[str, int, int, int, PagedLayout | None]]:
    """(name, ratio, dim, records a page, layout of index keys) of every form of `out`."""
    from wellhead.ops.indexer.api import LAYOUTS

    for name in ("c4", "c128"):
        yield name, *FORMS[name], None
    for name, layout in LAYOUTS.items():
        yield f"c4 {name} keys", *FORMS["c4 keys"], layout


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.compressor import kernels
    from wellhead.ops.compressor.api import constants
    from wellhead.ops.compressor.configs import choose_config

    found = []
    for name, ratio, dim, page, keys in _built():
        config = choose_config(ratio, dim)
        given = {**constants(ratio, dim, page, keys, config.rows), "PDL": True}
        signature = {
            "projected": "*fp32", "ape": "*fp32", "positions": "*i32", "state_slots": "*i32", "state": "*fp32",
            "norm": "*bf16", "cos": "*fp32", "sin": "*fp32", "slots": "*i64", "out": "*u8",
            "eps": "fp32", "STRIDE": "i32:16", **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        tile = config.num_warps, config.num_stages
        found.append(KernelBuild(f"advance[{name}]", kernels.advance_kernel, signature, given, *tile))
    return (*found, *prefill_builds())


def prefill_builds() -> Iterator[KernelBuild]:
    from wellhead.ops.compressor import prefill_kernels as kernels
    from wellhead.ops.compressor.api import constants
    from wellhead.ops.compressor.configs import choose_prefill_config
    from wellhead.ops.compressor.prefill import keep_constants

    tensors = {
        "projected": "*fp32", "ape": "*fp32", "positions": "*i32", "state_slots": "*i32", "state": "*fp32",
    }  # fmt: skip
    for name, ratio, dim, page, keys in _built():
        config = choose_prefill_config(ratio, dim)
        given = {**constants(ratio, dim, page, keys, config.rows), "PDL": True}
        signature = {
            **tensors, "firsts": "*i32", "norm": "*bf16", "ends": "*i32", "cos": "*fp32", "sin": "*fp32",
            "slots": "*i64", "out": "*u8", "eps": "fp32", "STRIDE": "i32:16",
            **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        tile = config.num_warps, config.num_stages
        yield KernelBuild(f"entries[{name}]", kernels.entries_kernel, signature, given, *tile)
    for name, (ratio, dim, _) in FORMS.items():
        config = choose_prefill_config(ratio, dim)
        given = {**keep_constants(ratio, dim, config), "PDL": True}
        signature = {**tensors, "TOKENS": "i32", **dict.fromkeys(given, "constexpr")}
        tile = config.keep_warps, config.num_stages
        yield KernelBuild(f"keep[{name}]", kernels.keep_kernel, signature, given, *tile)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.compressor.api import supports as of

    return of(sizes["ratio"], sizes["dim"])


def _case(name: str, tokens: int) -> Case:
    ratio, dim, page = FORMS[name]
    halves = 2 if ratio == 4 else 1
    sizes = {"tokens": tokens, "ratio": ratio, "dim": dim, "page": page}
    moved = tokens * (halves * ratio * dim * 8 + 2 * halves * dim * 8 + (584 if page else 132))
    draw = partial(make, tokens, ratio, dim, page)
    return Case(f"{name} T={tokens}", sizes, draw, moved, tokens * halves * ratio * dim * 5)


def _prefill_case(name: str, tokens: int, requests: int) -> Case:
    """Every row of the projection is read for the entries, those at the end of a chunk again for the rings."""
    ratio, dim, page = FORMS[name]
    halves = 2 if ratio == 4 else 1
    sizes = {"tokens": tokens, "requests": requests, "ratio": ratio, "dim": dim, "page": page}
    ring = min(tokens, requests * halves * ratio) * halves * dim * 8
    moved = tokens * halves * dim * 8 + 3 * ring + tokens // ratio * (584 if page else 132)
    draw = partial(make_prefill, tokens, requests, ratio, dim, page)
    return Case(f"{name} prefill T={tokens}", sizes, draw, moved, tokens * halves * dim * 5)


SPEC = OpSpec(
    name="compressor",
    summary="compressed key-value entries with their running state",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=101376, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=(
        *(_case(name, tokens) for name in FORMS for tokens in (1, 4, 16, 64)),
        *(_prefill_case(name, *chunk) for name in FORMS for chunk in CHUNKS),
    ),
    error=ErrorBudget(
        2.0**-3,
        2.0**-6,
        "the pooled sum's order may move a rounding to bf16 (2^-6 of entries up to four, before the rotation mixes "
        "pairs), and that the rounding of an E4M3 code by one step, 2^-3 of it",
    ),
    batch_invariant=True,
    batch_reason="one program a token or a finished block, whatever their number",
)
