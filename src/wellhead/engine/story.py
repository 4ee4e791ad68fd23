"""What a start-up is doing, for whoever wants to tell it: phases with names, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Phase = Callable[[str], AbstractContextManager[object]]
"""(name of a phase) -> a context that lasts as long as the phase."""


def untold(name: str) -> AbstractContextManager[object]:
    return nullcontext()
