"""SPEC of the compressor, decode step and prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

if TYPE_CHECKING:
    from wellhead.formats.paged import PagedLayout

EPS = 1e-6
CHUNKS = ((256, 4), (4096, 4))  # tokens and requests of a prefill
FORMS = {"c4": (4, 512, 64), "c4 index": (4, 128, 0), "c128": (128, 512, 2)}  # ratio, dim, records a page (0: bf16)


def _built() -> Iterator[tuple[str, int, int, int, PagedLayout | None]]:
    """(name, ratio, dim, records a page, layout of index keys) of every form of `out`."""
    from wellhead.ops.indexer.api import LAYOUTS

    for name, form in FORMS.items():
        yield name, *form, None
    for name, layout in LAYOUTS.items():
        yield f"c4 {name} keys", *FORMS["c4 index"], layout


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.compressor import kernels
    from wellhead.ops.compressor.api import constants
    from wellhead.ops.compressor.configs import choose_config

    found = []
    for name, ratio, dim, page, keys in _built():
        config = choose_config(ratio, dim)
        given = {**constants(ratio, dim, page, keys, config.rows), "PDL": False}
        signature = {
            "projected": "*fp32", "ape": "*fp32", "positions": "*i32", "state_slots": "*i32", "state": "*fp32",
            "norm": "*bf16", "cos": "*fp32", "sin": "*fp32", "slots": "*i64", "out": "*u8" if page or keys else "*bf16",
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
        given = {**constants(ratio, dim, page, keys, config.rows), "PDL": False}
        signature = {
            **tensors, "firsts": "*i32", "norm": "*bf16", "ends": "*i32", "cos": "*fp32", "sin": "*fp32",
            "slots": "*i64", "out": "*u8" if page or keys else "*bf16", "eps": "fp32", "STRIDE": "i32:16",
            **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        tile = config.num_warps, config.num_stages
        yield KernelBuild(f"entries[{name}]", kernels.entries_kernel, signature, given, *tile)
    for name, (ratio, dim, _) in FORMS.items():
        config = choose_prefill_config(ratio, dim)
        given = {**keep_constants(ratio, dim, config), "PDL": False}
        signature = {**tensors, "TOKENS": "i32", **dict.fromkeys(given, "constexpr")}
        tile = config.keep_warps, config.num_stages
        yield KernelBuild(f"keep[{name}]", kernels.keep_kernel, signature, given, *tile)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.compressor.api import supports as of

    return of(sizes["ratio"], sizes["dim"])


def make(tokens: int, ratio: int, dim: int, page: int, generator: Any, device: Any) -> dict[str, Any]:
    """Requests whose token ends a block, with full rings in shuffled state slots and a slot for each entry."""
    import torch

    from wellhead.formats import kv_record
    from wellhead.ops.compressor.reference import overlap, ring_rows

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    def order(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator, device=generator.device)

    width = overlap(ratio) * dim
    angle = normal(tokens, 32)
    made = {
        "projected": normal(tokens, 2 * width), "ape": normal(ratio, width), "norm": (1 + normal(dim) / 4).bfloat16(),
        "positions": (ratio * (2 + order(tokens)) - 1).int(), "state_slots": order(tokens + 2)[:tokens].int(),
        "state": normal(tokens + 2, ring_rows(ratio), 2 * width), "cos": angle.cos(), "sin": angle.sin(),
    }  # fmt: skip
    if page:
        pages = 1 + -(-tokens // page)
        made |= {"slots": page + order((pages - 1) * page)[:tokens], "out": kv_record.allocate_pages(pages, page)}
    else:
        made |= {"slots": order(tokens), "out": torch.zeros(tokens, dim, dtype=torch.bfloat16)}
    return {name: value.to(device) for name, value in made.items()}


def make_prefill(
    tokens: int, requests: int, ratio: int, dim: int, page: int, generator: Any, device: Any
) -> dict[str, Any]:
    """Requests that share the batch about evenly and begin anywhere, with full rings; the last tokens are padding."""
    import torch

    def integers(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator, device=generator.device).tolist()

    padding = tokens // 64
    each = (tokens - padding) // requests
    starts = [0, *(r * each + x for r, x in enumerate(integers(-each // 3, each // 3 + 1, requests - 1), 1))]
    lengths = [high - low for low, high in pairwise([*starts, tokens - padding])]
    begin = integers(2 * ratio, 8 * ratio, requests)
    rows = [row for row, length in enumerate(lengths) for _ in range(length)]
    positions = [begin[row] + token - starts[row] for token, row in enumerate(rows)]
    ends = [token for token, position in enumerate(positions) if (position + 1) % ratio == 0]
    made = make(max(len(ends), requests), ratio, dim, page, generator, "cpu")
    count, slots = len(ends), made["state_slots"]
    made |= {name: made[name][:count] for name in ("cos", "sin", "slots")}
    if not page:
        made["out"] = made["out"][:count]
    projected = torch.randn(tokens, made["projected"].shape[1], generator=generator, device=generator.device)
    made |= {
        "projected": projected,
        "positions": torch.tensor(positions + [0] * padding, dtype=torch.int32),
        "firsts": torch.tensor([starts[row] for row in rows] + [0] * padding, dtype=torch.int32),
        "state_slots": torch.cat((slots[rows], torch.full((padding,), -1))).int(),
        "ends": torch.tensor(ends, dtype=torch.int32),
    }
    return {name: value.to(device) for name, value in made.items()}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernels on a case; the result is the cache, or the entries. A prefill works on a state of its own."""
    import torch

    from wellhead.formats import kv_record
    from wellhead.ops.compressor.api import plan_decode
    from wellhead.ops.compressor.prefill import plan_prefill

    given = {**inputs, "out": inputs["out"].clone()}
    ratio, dim, out = inputs["ape"].shape[0], inputs["norm"].shape[0], given["out"]
    page = kv_record.LAYOUT.page_size(out) if out.dtype == torch.uint8 else 0
    plan: Any = plan_decode(ratio, dim, EPS, page_size=page)
    if "ends" in inputs:
        plan, given["state"] = plan_prefill(ratio, dim, EPS, page_size=page), inputs["state"].clone()

    def run() -> Any:
        plan.run(**given)
        return read if page else out

    def read() -> torch.Tensor:
        return kv_record.read(out, inputs["slots"])

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """Pooling of the blocks, norm, rotation and (as a record) rounding, in torch."""
    import torch

    from wellhead.formats import kv_record
    from wellhead.ops.compressor import reference
    from wellhead.ops.norm_quant.reference import rms_norm
    from wellhead.ops.rope.reference import rotate

    (ratio, width), real = inputs["ape"].shape, (inputs["state_slots"] >= 0).nonzero().squeeze(-1)
    tokens = torch.arange(len(real), device=real.device)
    positions, chunked = inputs["positions"][real].long(), "ends" in inputs
    starts, rows = (inputs["firsts"][real].long() if chunked else tokens).unique(return_inverse=True)
    state_slots = inputs["state_slots"][real][starts].long()
    starts = torch.cat((starts, torch.full_like(starts[:1], len(real))))
    blocks = reference.completed_blocks(ratio, positions, rows, starts, state_slots)
    state = inputs["state"].clone() if chunked else inputs["state"]

    def run() -> Any:
        kv, gate = inputs["projected"][real].split(width, dim=1)
        pooled = reference.advance(state, kv, gate + inputs["ape"][positions % ratio], blocks).bfloat16()
        place = torch.arange(len(pooled), device=real.device) if chunked else blocks.token
        entries = rotate(rms_norm(pooled, inputs["norm"], EPS), inputs["cos"][place], inputs["sin"][place])
        out = inputs["out"].clone()
        if out.dtype == torch.uint8:
            kv_record.write(out, inputs["slots"][place], entries)
            return kv_record.read(out, inputs["slots"])
        out[place] = entries
        return out

    return run


def _case(name: str, tokens: int) -> Case:
    ratio, dim, page = FORMS[name]
    halves = 2 if ratio == 4 else 1
    sizes = {"tokens": tokens, "ratio": ratio, "dim": dim, "page": page}
    moved = tokens * (halves * ratio * dim * 8 + 2 * halves * dim * 8 + (584 if page else 2 * dim))
    draw = partial(make, tokens, ratio, dim, page)
    return Case(f"{name} T={tokens}", sizes, draw, moved, tokens * halves * ratio * dim * 5)


def _prefill_case(name: str, tokens: int, requests: int) -> Case:
    """Every row of the projection is read for the entries, those at the end of a chunk again for the rings."""
    ratio, dim, page = FORMS[name]
    halves = 2 if ratio == 4 else 1
    sizes = {"tokens": tokens, "requests": requests, "ratio": ratio, "dim": dim, "page": page}
    ring = min(tokens, requests * halves * ratio) * halves * dim * 8
    moved = tokens * halves * dim * 8 + 3 * ring + tokens // ratio * (584 if page else 2 * dim)
    draw = partial(make_prefill, tokens, requests, ratio, dim, page)
    return Case(f"{name} prefill T={tokens}", sizes, draw, moved, tokens * halves * dim * 5)


SPEC = OpSpec(
    name="compressor",
    summary="compressed key-value entries with their running state",
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
    cases=(
        *(_case(name, tokens) for name in FORMS for tokens in (1, 4, 16, 64)),
        *(_prefill_case(name, *chunk) for name in FORMS for chunk in CHUNKS),
    ),
    error=ErrorBudget(
        2.0**-3,
        2.0**-6,
        "the pooled sum's order may move a rounding to bf16 (2^-6 of entries up to four, before the rotation mixes "
        "pairs), and that the rounding of a record's E4M3 code by one step, 2^-3 of it",
    ),
    batch_invariant=True,
    batch_reason="one program a token or a finished block, whatever their number",
)
