"""Launches beside the main ones: further streams, which a captured graph keeps as branches of their own."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

URGENT, PATIENT = -1, 0  # a stream's priority: whose blocks come first where a multiprocessor is free


@functools.cache
def capturing() -> torch.cuda.Stream:
    """Where every graph of this process is captured: what one allocates before it is captured, the next finds there."""
    return torch.cuda.Stream(priority=URGENT)


def _apart(device: torch.device, priority: int) -> torch.cuda.Stream:
    """A stream that is not `capturing`: torch has 32 of a priority and gives them out again."""
    stream = torch.cuda.Stream(device, priority=priority)
    return torch.cuda.Stream(device, priority=priority) if stream == capturing() else stream


class Aside:
    """`with aside():` launches behind everything that the current stream was given so far, but beside what follows;
    `join` makes the current stream wait for it.

    What runs there hides behind the main launches where both wait for memory less than for each other's ends. Several
    parts entered before a join run one behind the other. A PATIENT one leaves the multiprocessors to what is URGENT, as
    a captured step's own launches are. One aside may be entered, or joined, within another. On the CPU everything runs
    in order.
    """

    def __init__(self, device: torch.device, priority: int = URGENT):
        self._stream = _apart(device, priority) if device.type == "cuda" else None
        self._forked = False  # a stream that a capture has not seen must not be waited for

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        self._forked = True
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> None:
        """Remember what was launched aside so far, for `join_marked`."""
        if self._stream is not None:
            self._marked = self._stream.record_event()

    def join_marked(self) -> None:
        """What the current stream is given from here on sees the results up to the mark."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_event(self._marked)

    def join(self) -> None:
        """What the current stream is given from here on sees the results."""
        if self._stream is not None and self._forked:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._forked = False
