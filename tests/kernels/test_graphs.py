"""On a card: every op inside a CUDA graph, replayed with other inputs; runs neither synchronise nor allocate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.small import SMALL
from wellhead.ops import registry
from wellhead.ops.linear.prefetch import prefetch
from wellhead.testing.agreement import results

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

PREPARED = {"moe": ("ids",)}
"""Inputs that another op turned into a plan's lists before: they stay as they were."""


def drawn(op: str, seed: int) -> dict[str, Any]:
    return SMALL[op](torch.Generator("cuda").manual_seed(seed), "cuda")


def warmed(run: Callable[[], Any]) -> Callable[[], Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    return run


@pytest.mark.parametrize("op", SMALL)
def test_a_replay_sees_what_its_inputs_hold_then(op: str) -> None:
    prepare = registry.spec(op).impl("triton").prepare
    assert prepare is not None
    first, second = drawn(op, 1), drawn(op, 2)
    for name in PREPARED.get(op, ()):
        second[name].copy_(first[name])
    expected = results(prepare(second))
    second = drawn(op, 2)  # an op that writes into its inputs has used the others up
    for name in PREPARED.get(op, ()):
        second[name].copy_(first[name])
    run = prepare(first)
    before = results(warmed(run))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            value.copy_(second[name])
    for tensor in () if callable(made) else made if isinstance(made, tuple) else (made,):
        tensor.copy_(torch.full_like(tensor, 77))  # what is not written again is found out
    graph.replay()
    found = results(lambda: made)
    assert any(not torch.equal(a, b) for a, b in zip(before, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("op", SMALL)
def test_a_run_neither_synchronises_nor_allocates(op: str) -> None:
    prepare = registry.spec(op).impl("triton").prepare
    assert prepare is not None
    run = warmed(prepare(drawn(op, 3)))
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated


def test_weights_asked_for_ahead_stay_what_they_are() -> None:
    """Any sizes, budgets that end within one, and the last bytes of an allocation; captured too."""
    weights = [torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda") for size in (1, 4097, 3 << 20)]
    before = [weight.clone() for weight in weights]
    graph = torch.cuda.CUDAGraph()
    for number, budget in ((1, 100), (2, 1 << 30), (3, 5000), (3, 1 << 30)):
        prefetch(weights[:number], budget)
    with torch.cuda.graph(graph):
        prefetch(weights, 1 << 30)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(weight, same) for weight, same in zip(weights, before, strict=True))
