"""Weights of the launches to come, read while the present ones wait for each other instead of memory."""

from __future__ import annotations

import torch

from wellhead.dispatch.capability import l2_bytes
from wellhead.model.device_aside import Aside

MOST_BYTES = 12 << 20  # what memory brings while a hyper-connection runs; more would hold that up (docs/log.md)


class Ahead:
    """`ahead(first, second, ..)`: weights come to L2, in the order in which they will be read, beside what is launched
    from here on. No more than a quarter of L2, so that they are still there when they are read.

    Nothing on the CPU, and for steps of several tokens: those keep memory busy themselves, two lost 1 % (docs/log.md).
    """

    def __init__(self, device: torch.device, tokens: int):
        on = device.type == "cuda" and tokens == 1
        self._budget = min(MOST_BYTES, l2_bytes(device) // 4) if on else 0
        self._aside = Aside(device if on else torch.device("cpu"))

    def __call__(self, *weights: torch.Tensor) -> None:
        if self._budget:
            from wellhead.ops.linear.prefetch import prefetch

            with self._aside():
                prefetch(weights, self._budget)

    def join(self) -> None:
        """The step's end: a captured graph must not leave a branch open."""
        self._aside.join()
