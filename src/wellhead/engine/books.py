"""An engine's books, made of sizes alone: no tensor is needed, so that bad sizes are refused before any is read."""

from __future__ import annotations

from wellhead.engine.memory import Memory
from wellhead.engine.scheduler import Scheduler
from wellhead.model.config import ModelConfig
from wellhead.model.numerics import Numerics
from wellhead.model.standing_memory import state_bytes
from wellhead.model.state import pages_for

DEFAULT_CACHE_BYTES = 2 << 30


def make_books(
    config: ModelConfig,
    numerics: Numerics,
    *,
    max_running: int,
    chunk_tokens: int,
    num_pages: int | None,
    window_pages: int | None,
    prefix_caching: bool,
    speculative_tokens: int,
    context_length: int,
) -> Scheduler:
    """The scheduler of an `Engine` of these sizes, with its `memory`; ValueError names the size that will not do.

    num_pages None: as many as fit DEFAULT_CACHE_BYTES, but no more than all requests can fill.
    """
    if max_running < 1:
        raise ValueError(f"max_running is {max_running}, expected at least 1")
    if num_pages is None:
        caches = state_bytes(config, numerics, with_mtp=speculative_tokens > 0)
        num_pages = max(1, min(DEFAULT_CACHE_BYTES // caches.page, max_running * pages_for(context_length)))
    memory = Memory(num_pages, max_running, window_pages, window=config.sliding_window, prefix_caching=prefix_caching)
    return Scheduler(memory, chunk_tokens, speculative_tokens)
