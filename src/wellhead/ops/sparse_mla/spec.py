"""SPEC of sparse MLA, decode and prefill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

WINDOW = 128
LAYOUTS = {"c4": 64, "c128": 2}  # records of a logical page of the selected pool
SHAPES = ((64, 512), (128, 1024), (32, 512), (8, 512))  # heads on a rank, selected records
PREFILL = ((256, 64, 512), (4096, 64, 512), (256, 128, 1024))  # tokens, heads, selected records
DECODED = 64  # tokens: the largest decode batch of a case; more are a prefill
_MMA = {arch: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" for arch in ("sm89", "sm120", "sm121")}


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.formats.kv_record import page_stride
    from wellhead.ops.sparse_mla import kernels
    from wellhead.ops.sparse_mla.api import MERGE_WARPS, constants
    from wellhead.ops.sparse_mla.configs import choose_config

    tensors = {
        "q": "*bf16", "window": "*u8", "window_slots": "*i32", "window_length": "*i32", "extra": "*u8",
        "extra_slots": "*i32", "extra_length": "*i32", "sink": "*fp32", "out": "*bf16", "part": "*fp32",
        "part_stat": "*fp32", "scale": "fp32", "HEADS": "i32", "WINDOW_WIDTH": "i32:16", "EXTRA_WIDTH": "i32:16",
    }  # fmt: skip
    configs = {choose_config(t, h, WINDOW + k): None for h, k in SHAPES for t in (1, 4, 16, 64, 4096)}
    found = []
    for config in configs:
        for kind, page in LAYOUTS.items():
            given = {**constants(config, 256, page_stride(256), page, page_stride(page)), "PDL": True}
            signature = {**tensors, **dict.fromkeys(given, "constexpr")}
            name = f"attend[{kind},heads={config.heads},records={config.records},splits={config.splits}]"
            tile = config.num_warps, config.num_stages, _MMA
            found.append(KernelBuild(name, kernels.attend_kernel, signature, given, *tile))
    for splits in sorted({config.splits for config in configs if config.splits > 1}):
        for turns in (False, True):
            fixed: dict[str, Any] = {"SPLITS": splits, "PDL": True}
            fixed |= dict.fromkeys(() if turns else ("positions", "freqs"))
            signature = dict.fromkeys(("part", "part_stat", "sink", "freqs"), "*fp32")
            signature |= {"out": "*bf16", "positions": "*i64", "HEADS": "i32", **dict.fromkeys(fixed, "constexpr")}
            name = f"merge[splits={splits}{',turned' if turns else ''}]"
            found.append(KernelBuild(name, kernels.merge_kernel, signature, fixed, MERGE_WARPS))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.sparse_mla.api import supports as of

    return of(sizes["heads"])


def make(tokens: int, heads: int, selected: int, page: int, generator: Any, device: Any) -> dict[str, Any]:
    """q, sink and two pools; every token's slots are drawn from pools four times as large as one token needs.

    In a prefill a slot may be drawn twice: distinct ones would take a matrix of tokens x pool to draw.
    """
    import torch

    from wellhead.formats import kv_record

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    def pool(width: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        pages = -(-4 * width // size)
        cache = kv_record.allocate_pages(pages, size)
        kv_record.write(cache, torch.arange(pages * size), normal(pages * size, kv_record.DIM).bfloat16().cpu())
        if tokens > DECODED:
            slots = torch.randint(pages * size, (tokens, width), generator=generator, device=generator.device)
        else:
            chance = torch.rand(tokens, pages * size, generator=generator, device=generator.device)
            slots = chance.topk(width).indices
        return cache.to(device), slots.int().to(device)

    window, window_slots = pool(WINDOW, 256)
    extra, extra_slots = pool(selected, page)
    return {
        "q": normal(tokens, heads, kv_record.DIM).bfloat16().to(device), "sink": normal(heads).to(device),
        "pages": (256, page),
        "window": window, "window_slots": window_slots, "extra": extra, "extra_slots": extra_slots,
        "window_length": torch.full((tokens,), WINDOW, dtype=torch.int32, device=device),
        "extra_length": torch.full((tokens,), selected, dtype=torch.int32, device=device),
    }  # fmt: skip


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernels over both pools."""
    import torch

    from wellhead.ops.sparse_mla.api import Pool, plan

    tokens, heads, dim = inputs["q"].shape
    window, extra = (
        Pool(inputs[name], size, inputs[f"{name}_slots"], inputs[f"{name}_length"])
        for name, size in zip(("window", "extra"), inputs["pages"], strict=True)
    )
    most = window.slots.shape[1] + extra.slots.shape[1]
    attention = plan(tokens, heads, most, dim**-0.5, device=inputs["q"].device)
    out = torch.empty_like(inputs["q"])

    def run() -> torch.Tensor:
        attention.run(inputs["q"], window, extra, inputs["sink"], out)
        return out

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """On the CPU, where the reference's caches live; a prefill where its inputs are."""
    from wellhead.ops.sparse_mla import reference

    device = inputs["q"].device if len(inputs["q"]) > DECODED else "cpu"
    pools = [(inputs[name].to(device), inputs[f"{name}_slots"].to(device).long()) for name in ("window", "extra")]
    q, sink = inputs["q"].to(device), inputs["sink"].to(device)
    return lambda: reference.attend_paged(q, pools, sink, q.shape[-1] ** -0.5)


def _case(tokens: int, heads: int, selected: int) -> Case:
    """A decode's tokens share no record; a prefill's share all, and read each pool of `make` once."""
    sizes = {"tokens": tokens, "heads": heads, "selected": selected, "page": LAYOUTS["c4"]}
    records, prefill = WINDOW + selected, tokens > DECODED
    moved = (4 if prefill else tokens) * records * 584 + tokens * (records * 4 + 2 * heads * 1024)
    draw = partial(make, tokens, heads, selected, LAYOUTS["c4"])
    title = f"{'prefill T' if prefill else 'B'}={tokens},H={heads},K={WINDOW}+{selected}"
    return Case(title, sizes, draw, moved, 4 * tokens * heads * records * 512)


SPEC = OpSpec(
    name="sparse_mla",
    summary="attention over window and selected records with sink",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=101376, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=(
        *(_case(tokens, heads, k) for heads, k in SHAPES for tokens in (1, 4, 16, 64)),
        *(_case(*shape) for shape in PREFILL),
    ),
    error=ErrorBudget(
        2.0**-6,
        2.0**-6,
        "probabilities are rounded to bf16 against the running maximum, the reference's against the final one: 2^-9 of "
        "each weight, on records of size one",
    ),
    batch_invariant=False,
    batch_reason="the number of parts follows the planned number of tokens; under one plan a token's bits do not "
    "depend on the others",
)
