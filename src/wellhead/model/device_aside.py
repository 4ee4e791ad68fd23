"""Launches beside the main ones: a second stream, which a captured graph keeps as a branch of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Aside:
    """`with aside():` launches behind everything launched so far, but beside what follows; `join` waits for it.

    What runs there hides behind the main launches where both wait for memory less than for each other's ends. Several
    parts entered before a join run one behind the other, and before the main launches where both want a multiprocessor:
    they are small and waited for. On the CPU everything runs in order.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What is launched from here on sees the results."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
