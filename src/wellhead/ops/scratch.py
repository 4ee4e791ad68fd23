"""Buffers between the launches of a plan. Plans of steps that run one at a time may have the same: what is in them when
a step begins may be anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_LENDING: ContextVar[Scratch | None] = ContextVar("lending", default=None)


class Scratch:
    """Blocks of memory. What is planned within one `lend()` has different blocks, within another the same again."""

    def __init__(self) -> None:
        self.blocks: list[torch.Tensor] = []
        self._free: list[torch.Tensor] = []

    @contextmanager
    def lend(self) -> Iterator[None]:
        """`empty` takes the smallest block here that is large enough and not taken, or makes one."""
        self._free = sorted(self.blocks, key=lambda block: block.nbytes)
        outer = _LENDING.set(self)
        try:
            yield
        finally:
            _LENDING.reset(outer)

    def take(self, size: int, device: torch.device | str) -> torch.Tensor:
        """A block of at least `size` bytes."""
        at = next((at for at, block in enumerate(self._free) if block.nbytes >= size), None)
        if at is not None:
            return self._free.pop(at)
        self.blocks.append(torch.empty(size, dtype=torch.uint8, device=device))
        return self.blocks[-1]


def empty(*shape: int, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """As `torch.empty`; of a `Scratch` where one is lending."""
    scratch, count = _LENDING.get(), torch.Size(shape).numel()
    if scratch is None or not count:
        return torch.empty(shape, dtype=dtype, device=device)
    size = count * dtype.itemsize
    return scratch.take(size, device)[:size].view(dtype).view(shape)
