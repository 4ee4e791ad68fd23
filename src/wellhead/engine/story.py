"""A start-up told on stderr: each phase with its seconds, then one line of what there is.

What starts something up takes a `Phase` and says what it is doing; `Story` tells it, `untold` keeps it to itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from wellhead.engine.core import Engine

Phase = Callable[[str], AbstractContextManager[object]]
"""(name of a phase) -> a context that lasts as long as the phase."""


def untold(name: str) -> AbstractContextManager[object]:
    return nullcontext()


def span(sizes: Sequence[int]) -> str:
    """ "2 to 512" of sizes in any order."""
    return f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else f"{sizes[0]}"


class Story:
    """Phases come from the engine's thread, `doing` is read by others."""

    def __init__(self, out: IO[str] | None = None):
        self._out = out or sys.stderr
        self.doing = "starting"
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Told when it is over; while it lasts its name is `doing`. A phase that fails says so."""
        self.doing, began = name, time.perf_counter()
        try:
            yield
        except BaseException:
            self.tell(f"  {name:<40} failed after {time.perf_counter() - began:6.1f} s")
            raise
        self.seconds[name] = time.perf_counter() - began
        self.tell(f"  {name:<40} {self.seconds[name]:6.1f} s")

    def ready(self, engine: Engine, name: str, ranks: int, url: str, sums: tuple[str, str] | None = None) -> None:
        """The one line; with several ranks, one before it of how they add (way, why)."""
        if sums is not None:
            self.tell(f"  sums over ranks: {sums[0]} ({sums[1]})")
        self.doing = "ready"
        sizes, misses = engine.graph_sizes, engine.graph_misses
        graphs = f"decode graphs for {', '.join(map(str, sizes))} requests" if sizes else "no graphs"
        frozen = "nothing is compiled from here on" if misses is not None else "torch on the CPU, nothing to compile"
        self.tell(
            f"wellhead: {name} on {ranks} rank{'s' * (ranks > 1)}, {engine.pool_tokens:,} tokens in "
            f"{engine.pool_pages:,} pages, context {engine.context_length:,}, {engine.max_running} "
            f"requests at once, {graphs}; {frozen}; ready after {time.perf_counter() - self._began:.1f} s at {url}"
        )

    def tell(self, line: str) -> None:
        print(line, file=self._out, flush=True)
