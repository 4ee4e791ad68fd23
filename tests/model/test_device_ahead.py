"""Which steps read weights ahead, and how much of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("triton")

from wellhead.model import device_ahead
from wellhead.ops.linear import prefetch


@pytest.mark.parametrize(
    ("device", "tokens", "l2", "budget"),
    [
        ("cuda", 1, 50 << 20, 12 << 20),  # H100
        ("cuda", 1, 24 << 20, 6 << 20),  # DGX Spark: a quarter
        ("cuda", 2, 50 << 20, None),
        ("cpu", 1, 50 << 20, None),
    ],
)
def test_one_token_reads_what_l2_keeps(
    device: str, tokens: int, l2: int, budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[int], int]] = []
    joined: list[bool] = []

    class Aside:
        __call__ = staticmethod(nullcontext)

        def __init__(self, where: torch.device):
            assert where.type == (device if budget else "cpu")

        def join(self) -> None:
            joined.append(True)

    monkeypatch.setattr(device_ahead, "Aside", Aside)
    monkeypatch.setattr(device_ahead, "l2_bytes", lambda where: l2)
    monkeypatch.setattr(prefetch, "prefetch", lambda weights, most: asked.append(([len(w) for w in weights], most)))
    ahead = device_ahead.Ahead(torch.device(device), tokens)
    ahead(torch.empty(3), torch.empty(5))
    ahead.join()
    assert asked == ([([3, 5], budget)] if budget else []) and joined == [True]


def test_a_budget_ends_within_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are what is left for each, in order; programs enough for the longest."""
    from wellhead.ops.linear import prefetch_kernels

    launched: list[tuple[int, list[int]]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *given, **_: launched.append((grid[0], list(given[3:])))

    monkeypatch.setattr(prefetch_kernels, "prefetch_kernel", Kernel())
    program = prefetch.SECTOR * prefetch.AT_ONCE * prefetch.TURNS
    weights = [torch.empty(size, dtype=torch.uint8) for size in (program, 2 * program, 10)]
    prefetch.prefetch(weights, 2 * program + 1)
    prefetch.prefetch(weights[2:], 1 << 30)
    assert launched == [(2, [program, program + 1, 0]), (1, [10, 0, 0])]
