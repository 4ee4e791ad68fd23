"""SPEC of a step's addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wellhead.dispatch.spec import REFERENCE, Case, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

WINDOW, PAGE = 128, 256
MOST = {4: (512, False), 128: (1 << 20, True)}  # by ratio: entries chosen at most, whether all slots are wanted


def builds() -> tuple[KernelBuild, ...]:
    from wellhead.ops.addresses import kernels
    from wellhead.ops.addresses.api import ratio_constants, token_constants

    tensors = {"positions": "*i64", "rows": "*i32", "owners": "*i64", "page_table": "*i32"}
    given: dict[str, Any] = {**token_constants(WINDOW, PAGE), "PDL": True}
    signature = {
        **tensors, "window_table": "*i32", "write_slots": "*i64", "window_slots": "*i64", "tables": "*i32",
        "PAGES": "i32", **dict.fromkeys(given, "constexpr"),
    }  # fmt: skip
    found = [KernelBuild("window", kernels.token_kernel, signature, given)]
    for ratio in MOST:
        for ends in (False, True):
            given = {**ratio_constants(ratio, PAGE), "PDL": True, **({} if ends else {"ends": None})}
            signature = {
                **tensors, "freqs": "*fp32", "ends": "*i32", "visible": "*i32", "chosen": "*i32", "entry_slots": "*i64",
                "cos": "*fp32", "sin": "*fp32", "slots": "*i64",
                **dict.fromkeys(("TOKENS", "COUNT", "PAGES", "WIDTH", "MOST"), "i32"),
                **dict.fromkeys(given, "constexpr"),
            }  # fmt: skip
            name = f"ratio[{ratio}{',ends' if ends else ''}]"
            found.append(KernelBuild(name, kernels.ratio_kernel, signature, given))
    return tuple(found)


def supports(sizes: Sizes) -> str | None:
    from wellhead.ops.addresses.api import supports as of

    return of(sizes["window"], sizes["page"], tuple(MOST))


def make(tokens: int, pages: int, generator: Any, device: Any) -> dict[str, Any]:
    """One token of each of `tokens` requests, at a block's end, in pages that lie anywhere; one in three is padding."""
    import torch

    from wellhead.ops.rope.reference import frequencies

    on = {"generator": generator, "device": generator.device}
    made = {
        "positions": (torch.randint(0, pages * PAGE, (tokens,), **on) // 128 + 1) * 128 - 1,  # every block ends
        "rows": torch.randperm(tokens, **on).int(),
        "owners": torch.arange(tokens, device=generator.device) % 3 - 1,
        "page_table": torch.randint(-1, 1 << 30, (tokens, pages), **on).int(),
        "window_table": torch.randint(-1, 1 << 30, (tokens, pages), **on).int(),
        "freqs": frequencies(64, 10000.0, None),
    }
    return {name: value.to(device) for name, value in made.items()}


def prepare(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """All the tensors of a decode step."""
    from wellhead.ops.addresses.api import Wanted, plan

    positions, rows, owners = (inputs[name] for name in ("positions", "rows", "owners"))
    tokens, pages = inputs["page_table"].shape
    wanted = {ratio: Wanted(*of) for ratio, of in MOST.items()}
    addresses = plan(tokens, pages, WINDOW, PAGE, wanted, device=inputs["positions"].device)
    freqs = dict.fromkeys(MOST, inputs["freqs"])

    def run() -> Any:
        window, entries = addresses.run(
            positions, rows, owners, inputs["page_table"], inputs["window_table"], freqs
        )
        return (*window, *(tensor for of in entries.values() for tensor in of if tensor.numel()))

    return run


def prepare_reference(inputs: Mapping[str, Any]) -> Callable[[], Any]:
    from wellhead.ops.addresses import reference

    positions, rows, owners, table = (inputs[name] for name in ("positions", "rows", "owners", "page_table"))

    def run() -> Any:
        window = reference.window(positions, rows, owners, table, inputs["window_table"], WINDOW, PAGE)
        found = list(window)
        for ratio, (most, every) in MOST.items():
            width = -(-table.shape[1] * (PAGE // ratio) // 16) * 16 if every else 0
            of = reference.entries(
                positions, rows, owners, table, inputs["freqs"], None, ratio, PAGE, most, width
            )  # fmt: skip
            found += [tensor for tensor in of if tensor.numel()]
        return tuple(found)

    return run


def _case(tokens: int, pages: int) -> Case:
    sizes = {"tokens": tokens, "pages": pages, "window": WINDOW, "page": PAGE}
    written = tokens * (8 * (WINDOW + 3 + 2 * pages) + 4 * (pages + 4 + 128))
    return Case(f"T={tokens},context={pages * PAGE}", sizes, partial(make, tokens, pages), written + tokens * 4 * pages)


SPEC = OpSpec(
    name="addresses",
    summary="slots of a step's records and entries, through page tables",
    impls=(
        Impl("triton", needs=("kernels",), shared_bytes=8192, builds=builds, supports=supports, prepare=prepare),
        Impl(REFERENCE, prepare=prepare_reference),
    ),
    cases=tuple(_case(tokens, pages) for tokens in (1, 64) for pages in (16, 512)),
    error=ErrorBudget(2.0**-21, 2.0**-21, "addresses are exact; cosine and sine of one fp32 angle by two polynomials"),
    batch_invariant=True,
    batch_reason="a program computes one token or entry from its own request's table",
)
