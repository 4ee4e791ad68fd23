"""Continuous batching: who computes how many tokens in the next step.

Decodes come first, one token each; the rest of the step's token budget goes to prompts in order of arrival,
in chunks. A request is admitted when the pages of its longest possible run are free, so a running request
never waits for memory and is never put back. The head of the queue is not overtaken.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from wellhead.engine.pages import PageAllocator
from wellhead.engine.request import FinishReason, Request
from wellhead.model.state import pages_for


@dataclass(frozen=True)
class Work:
    """`tokens` tokens of a request in one step; sampled from when the last is the newest known."""

    request: Request
    tokens: int

    @property
    def samples(self) -> bool:
        return self.tokens == self.request.pending


class Scheduler:
    """Owns pages and state slots from admission to finish."""

    def __init__(self, pages: PageAllocator, slots: PageAllocator, chunk_tokens: int):
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {chunk_tokens}, expected at least 1")
        self.pages, self.slots = pages, slots
        self._budget = chunk_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request whose pages fit the pool when it is alone (the caller checked)."""
        self.waiting.append(request)

    def schedule(self) -> list[Work]:
        """The next step's work; empty only when nothing can run."""
        work = [Work(r, 1) for r in self.running if r.decoding]
        budget = self._budget - len(work)
        for request in (r for r in self.running if not r.decoding):
            if budget <= 0:
                break
            work.append(Work(request, min(request.pending, budget)))
            budget -= work[-1].tokens
        while budget > 0 and self.waiting and self._admit(self.waiting[0]):
            request = self.waiting.popleft()
            work.append(Work(request, min(request.pending, budget)))
            budget -= work[-1].tokens
        return work

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it is and free what it owns; a finished one is left alone."""
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if request.state_slot is None:
            self.waiting.remove(request)
            return
        self.running.remove(request)
        self.pages.release(request.pages)
        self.slots.release([request.state_slot])
        request.pages, request.state_slot = [], None

    def _admit(self, request: Request) -> bool:
        needed = pages_for(request.cached_tokens)
        if not self.slots.free or self.pages.free < needed:
            return False
        request.pages = self.pages.allocate(needed)
        (request.state_slot,) = self.slots.allocate(1)
        self.running.append(request)
        return True
