"""SPEC of the compressor's decode step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

EPS = 1e-6
FORMS = {"c4": (4, 512, 64), "c4 index": (4, 128, 0), "c128": (128, 512, 2)}  # ratio, dim, records a page (0: bf16)


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.compressor import kernels
    from wellhead.ops.compressor.api import constants
    from wellhead.ops.compressor.configs import choose_config

    found = []
    for name, (ratio, dim, page) in FORMS.items():
        config = choose_config(ratio, dim)
        given = constants(ratio, dim, page, config)
        signature = {
            "projected": "*fp32", "ape": "*fp32", "positions": "*i32", "state_slots": "*i32", "state": "*fp32",
            "norm": "*bf16", "cos": "*fp32", "sin": "*fp32", "slots": "*i64", "out": "*u8" if page else "*bf16",
            "eps": "fp32", "STRIDE": "i32:16", **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        tile = config.num_warps, config.num_stages
        found.append(KernelBuild(f"advance[{name}]", kernels.advance_kernel, signature, given, *tile))
    return tuple(found)


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


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """The kernel on a case; its result is the cache, or the entries."""
    import torch

    from wellhead.formats import kv_record
    from wellhead.ops.compressor.api import plan_decode

    ratio, dim, out = inputs["ape"].shape[0], inputs["norm"].shape[0], inputs["out"].clone()
    page = kv_record.LAYOUT.page_size(out) if out.dtype == torch.uint8 else 0
    decode, given = plan_decode(ratio, dim, EPS, page_size=page), {**inputs, "out": out}

    def run() -> Any:
        decode.run(**given)
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

    (ratio, width), positions = inputs["ape"].shape, inputs["positions"].long()
    rows = torch.arange(len(positions), device=positions.device)
    starts = torch.arange(len(positions) + 1, device=positions.device)
    blocks = reference.completed_blocks(ratio, positions, rows, starts, inputs["state_slots"].long())

    def run() -> Any:
        kv, gate = inputs["projected"].split(width, dim=1)
        pooled = reference.advance(inputs["state"], kv, gate + inputs["ape"][positions % ratio], blocks).bfloat16()
        ended = blocks.token
        entries = rotate(rms_norm(pooled, inputs["norm"], EPS), inputs["cos"][ended], inputs["sin"][ended])
        out = inputs["out"].clone()
        if out.dtype == torch.uint8:
            kv_record.write(out, inputs["slots"][ended], entries)
            return kv_record.read(out, inputs["slots"])
        out[ended] = entries
        return out

    return run


def _case(name: str, tokens: int) -> Case:
    ratio, dim, page = FORMS[name]
    halves = 2 if ratio == 4 else 1
    sizes = {"tokens": tokens, "ratio": ratio, "dim": dim, "page": page}
    moved = tokens * (halves * ratio * dim * 8 + 2 * halves * dim * 8 + (584 if page else 2 * dim))
    draw = partial(make, tokens, ratio, dim, page)
    return Case(f"{name} T={tokens}", sizes, draw, moved, tokens * halves * ratio * dim * 5)


SPEC = OpSpec(
    name="compressor",
    summary="compressed key-value entries with their running state",
    impls=(
        Impl(
            "triton",
            needs=("kernels", "fp8e4nv_conversion"),
            shared_bytes=101376,
            builds=builds,
            supports=supports,
            prepare=prepare,
        ),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(name, tokens) for name in FORMS for tokens in (1, 4, 16, 64)),
    error=ErrorBudget(
        2.0**-3,
        2.0**-6,
        "the pooled sum's order may move a rounding to bf16 (2^-6 of entries up to four, before the rotation mixes "
        "pairs), and that the rounding of a record's E4M3 code by one step, 2^-3 of it",
    ),
    batch_invariant=True,
    batch_reason="one program a token, whatever their number",
)
