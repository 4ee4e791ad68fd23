"""Launches that compile and run nothing: which variants of kernels Triton would have compiled for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

DEVICE = 99  # nothing that Triton keeps for it meets what it has compiled for a card


class Driver:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches end before the launch; they are made for a card of sm_90, whichever is there."""
    from triton.runtime import JITFunction, driver

    monkeypatch.setattr(driver, "_active", Driver())
    run: Callable[..., Any] = JITFunction.run
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *args, warmup=False, **options: run(self, *args, warmup=True, **options)
    )


@contextmanager
def recorded() -> Iterator[set[str]]:
    """The variants that launches inside want, none of which is compiled."""
    from triton import knobs

    from wellhead.dispatch.frozen import case

    found: set[str] = set()

    def skip(**about: Any) -> bool:
        found.add(f"{about['fn'].module}.{about['fn'].name}: {case(about)}")
        return True

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, skip
    try:
        yield found
    finally:
        knobs.runtime.jit_cache_hook = before
