"""Values between the host and a card that nobody waits for: through pinned memory, in the order of the stream.

A plain copy of host memory waits until the card has done everything before it; that would end a step's lead over the
host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def send(values: torch.Tensor | Sequence[float], target: torch.Tensor) -> None:
    """Host values into a tensor of their shape."""
    host = torch.as_tensor(values, dtype=target.dtype)
    target.copy_(host.pin_memory() if target.is_cuda else host, non_blocking=True)


class Coming:
    """Integers [N] on their way to the host, as they are when the stream gets here."""

    def __init__(self, values: torch.Tensor):
        self._event = torch.cuda.Event() if values.is_cuda else None
        if self._event is None:
            self._host = values.clone()
            return
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._host.copy_(values, non_blocking=True)
        self._event.record()

    def wait(self) -> list[int]:
        """The integers; this is where the host waits for the card."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()
