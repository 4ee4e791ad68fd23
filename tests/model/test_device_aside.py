"""Branches of a captured step are streams of their own."""

from __future__ import annotations

import itertools

import pytest
import torch

from wellhead.model import device_aside


def test_no_branch_is_the_stream_that_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams come from a pool in turn, here of four."""
    turn = itertools.count()

    class Stream:
        def __init__(self, device: object = None, priority: int = 0):
            self.which = (next(turn) % 4, priority)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Stream) and self.which == other.which

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    device_aside.capturing.cache_clear()
    try:
        made = [device_aside.Aside(torch.device("cuda"))._stream for _ in range(12)]
        assert device_aside.capturing() is device_aside.capturing()
        assert len({stream.which for stream in made}) == 3  # type: ignore[union-attr]
        assert all(stream != device_aside.capturing() for stream in made)
    finally:
        device_aside.capturing.cache_clear()
