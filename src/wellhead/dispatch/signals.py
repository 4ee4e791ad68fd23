"""What killed a process. Standard library only."""

from __future__ import annotations

import signal


def name(number: int) -> str:
    """A signal's name; real-time ones have none but the first and the last."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
