"""A start-up told on stderr: each phase with its seconds, then one line of what there is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from wellhead.engine.llm import LLM


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

    def ready(self, llm: LLM, name: str, ranks: int, url: str) -> None:
        """The one line."""
        self.doing = "ready"
        engine = llm.engine
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
