"""One server over the embedded model for the whole room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.server import RunningServer
from wellhead.engine.llm import LLM
from wellhead.server.limits import Limits


def load(phase=None) -> LLM:  # type: ignore[no-untyped-def]
    more = {} if phase is None else {"phase": phase}
    return LLM(progress=False, num_pages=24, max_running=8, chunk_tokens=256, context_length=4096, **more)


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    running = RunningServer(load, limits=Limits(queued=64, body_bytes=1 << 20))
    yield running
    running.idle()
    running.close()
    assert running.life.bridge.failure is None
