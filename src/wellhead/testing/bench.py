"""One op's cases on a card: correct first, then microseconds, GB/s and the share of the roof."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from wellhead.dispatch.capability import Card, detect
from wellhead.dispatch.spec import REFERENCE, Case, OpSpec
from wellhead.testing.agreement import compare, results
from wellhead.testing.record import origin
from wellhead.testing.timing import Roof, times

ROTATED_BYTES = 1 << 30  # several times any L2
MOST_SETS = 16


def measure(spec: OpSpec, case: Case, impl: str, roof: Roof, arch: str = "native") -> dict[str, Any]:
    """The record of one case: keys of benchmarks/results/ops.jsonl. ValueError, naming the error, instead of
    a speed.

    arch: whose code the process runs; another than the card's was adopted (testing.moved).
    """
    prepare, reference = spec.impl(impl).prepare, spec.impl(impl).reference or spec.impl(REFERENCE).prepare
    if prepare is None or reference is None:
        raise ValueError(f"op {spec.name!r}: {impl!r} or the reference cannot be prepared from a case")
    card = needed_card()
    inputs = input_sets(case)
    runs = [prepare(drawn) for drawn in inputs]
    agreed = compare(results(runs[0]), results(reference(inputs[0])), spec.error)
    if not agreed:
        raise ValueError(
            f"{spec.name} {case.name}: {agreed.outside} of {agreed.total} values outside the budget, "
            f"largest difference {agreed.largest:.1e}, relative error {agreed.error:.1e}"
        )
    took = times(runs)
    speed = case.bytes / took.median / 1e3
    return {
        "op": spec.name, "case": case.name, "impl": impl, "gpu": card.name,
        "arch": card.arch if arch == "native" else f"{arch} on {card.arch}",
        "us_median": round(took.median, 2), "us_p20": round(took.p20, 2), "us_p80": round(took.p80, 2),
        "bytes": case.bytes, "gb_s": round(speed, 1), "roof_gb_s": round(roof.best, 1),
        "share": round(speed / roof.best, 4), "error": agreed.error,
        **origin(),
    }  # fmt: skip


def input_sets(case: Case) -> list[Any]:
    """As many draws of a case as it takes that no cache holds them all."""
    sets = max(2, min(MOST_SETS, ROTATED_BYTES // max(case.bytes, 1)))
    return [case.make(torch.Generator("cuda").manual_seed(seed), "cuda") for seed in range(sets)]


def needed_card() -> Card:
    """The card of this process; ValueError where there is none."""
    card = detect()
    if card is None:
        raise ValueError("the benchmark needs a CUDA card and torch with CUDA; `wellhead doctor` says what is here")
    return card


def selected(spec: OpSpec, wanted: str, *, needed: bool = True) -> Iterator[Case]:
    """The cases whose name contains `wanted`; where one is needed and none does, ValueError names all."""
    cases = [case for case in spec.cases if wanted in case.name]
    if needed and not cases:
        raise ValueError(f"op {spec.name!r} has no case with {wanted!r}; there are {[c.name for c in spec.cases]}")
    yield from cases
