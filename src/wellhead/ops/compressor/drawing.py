"""Random inputs of the cases, and how a plan runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EPS = 1e-6


def make(tokens: int, ratio: int, dim: int, page: int, generator: Any, device: Any) -> dict[str, Any]:
    """Requests whose token ends a block, with full rings in shuffled state slots and a slot for each entry."""
    import torch

    from wellhead.formats import index_key, kv_record
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
    size = page or index_key.PAGE_SIZE
    pages = 1 + -(-tokens // size)
    made["slots"] = size + order((pages - 1) * size)[:tokens]
    made["out"] = kv_record.allocate_pages(pages, page) if page else index_key.allocate_pages(index_key.FP8, pages)
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
    projected = torch.randn(tokens, made["projected"].shape[1], generator=generator, device=generator.device)
    made |= {
        "projected": projected,
        "positions": torch.tensor(positions + [0] * padding, dtype=torch.int32),
        "firsts": torch.tensor([starts[row] for row in rows] + [0] * padding, dtype=torch.int32),
        "state_slots": torch.cat((slots[rows], torch.full((padding,), -1))).int(),
        "ends": torch.tensor(ends, dtype=torch.int32),
    }
    return {name: value.to(device) for name, value in made.items()}


def form(out: torch.Tensor, dim: int) -> dict[str, Any]:
    """What a plan is told of such pages: of records of that width, or of index keys."""
    from wellhead.formats import index_key, kv_record
    from wellhead.ops.indexer.api import LAYOUTS

    if dim == kv_record.DIM:
        return {"page_size": kv_record.LAYOUT.page_size(out)}
    return {"keys": next(of for of in LAYOUTS.values() if of.page_stride(index_key.PAGE_SIZE) == out.shape[1])}


def read(out: torch.Tensor, slots: torch.Tensor, dim: int) -> torch.Tensor:
    """What lies there."""
    from wellhead.formats import kv_record
    from wellhead.ops.indexer import reference as indexer

    return kv_record.read(out, slots) if dim == kv_record.DIM else indexer.read_keys(out, slots)


def write(out: torch.Tensor, slots: torch.Tensor, entries: torch.Tensor) -> None:
    """bf16 entries as records, or turned as index keys."""
    from wellhead.formats import kv_record
    from wellhead.ops.indexer import reference as indexer

    if entries.shape[1] == kv_record.DIM:
        kv_record.write(out, slots, entries)
    else:
        indexer.write_keys(out, slots, indexer.rotate(entries))


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernels on a case; the result is what they stored. A prefill works on a state of its own."""
    from wellhead.ops.compressor.api import plan_decode
    from wellhead.ops.compressor.prefill import plan_prefill

    given = {**inputs, "out": inputs["out"].clone()}
    (ratio, dim), out = (inputs["ape"].shape[0], inputs["norm"].shape[0]), given["out"]
    plan: Any = plan_decode(ratio, dim, EPS, **form(out, dim))
    if "ends" in inputs:
        plan, given["state"] = plan_prefill(ratio, dim, EPS, **form(out, dim)), inputs["state"].clone()

    def run() -> Any:
        plan.run(**given)
        return lambda: read(out, inputs["slots"], dim)

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """Pooling of the blocks, norm, rotation and rounding, in torch."""
    import torch

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
        write(out, inputs["slots"][place], entries)
        return read(out, inputs["slots"], entries.shape[1])

    return run
