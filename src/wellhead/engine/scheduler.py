"""Continuous batching: who computes how many tokens in the next step.

Requests run in order of arrival and the head of the queue is not overtaken. In a step every decoding request gets one
token; what is left of the token budget goes to prompts in order of arrival, in chunks, then to newcomers. A newcomer
is admitted when its tokens fit beside the requests that run. Pages are given as tokens are computed, not for the
longest possible run: when a request finds none, neither free nor evictable, the latest arrival is preempted and goes
back to the head of the queue. The earliest is never preempted for another, so something always finishes.

A decoding request brings its drafts, guesses of the tokens behind its newest; how many were right, `advance` is told.

A chunk ends early where its prompt parts from the prefix cache and at the prompt's last page boundary: there the
prefix can be kept for others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wellhead.engine.memory import Memory
from wellhead.engine.request import FinishReason, Request
from wellhead.engine.speculative import draft_count
from wellhead.model.state import PAGE_TOKENS


@dataclass(frozen=True)
class Work:
    """`tokens` tokens of a request in one step, and `drafts` drafts behind them; `samples` when the last of the tokens
    is the newest known.

    restore: window page whose tail goes into the request's state slot before the step; save: window page that takes
    the tail from the slot after it; -1 for none. ahead: so many tokens of the request are still being computed in front
    of it, and its own one is what the last of them chooses.
    """

    request: Request
    tokens: int
    samples: bool
    restore: int = -1
    save: int = -1
    drafts: int = 0
    ahead: int = 0


@dataclass(frozen=True)
class Counters:
    """What a server reports. The first eight are of now, pages of each kind add up to the pool; the rest only grow."""

    waiting: int
    running: int
    pages_free: int
    pages_cached: int
    pages_used: int
    window_pages_free: int
    window_pages_cached: int
    window_pages_used: int
    prompt_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    recomputed_tokens: int
    finished: int
    draft_steps: int = 0  # how often a request brought drafts to a step
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Scheduler:
    """Decides each step's work; `schedule`, run it, `advance`, then append what was sampled."""

    def __init__(self, memory: Memory, chunk_tokens: int, speculative_tokens: int = 0):
        least = memory.slots.total * (1 + speculative_tokens)
        if chunk_tokens < least:
            each = f"{1 + speculative_tokens} tokens" if speculative_tokens else "a token"
            raise ValueError(
                f"chunk_tokens is {chunk_tokens}, expected at least {least}: in a step every running "
                f"request may need {each}; raise chunk_tokens or lower max_running"
            )
        self.memory = memory
        self._budget, self._most_drafts = chunk_tokens, speculative_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._full = False  # the head of the queue found no room, and nobody has left since
        self._prompt_tokens = self._hit_tokens = self._preemptions = self._recomputed = self._finished = 0
        self._draft_steps = self._drafted = self._accepted = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def counters(self) -> Counters:
        pages, window = self.memory.pages, self.memory.window_pages
        cached, tails = self.memory.prefix.unused, self.memory.prefix.unused_tails
        return Counters(
            len(self.waiting), len(self.running),
            pages.free, cached, pages.total - pages.free - cached,
            window.free, tails, window.total - window.free - tails,
            self._prompt_tokens, self._hit_tokens, self._preemptions, self._recomputed, self._finished,
            self._draft_steps, self._drafted, self._accepted,
        )  # fmt: skip

    def add(self, request: Request) -> None:
        """Queue a request whose longest run fits the pool when it is alone (the caller checked)."""
        self._prompt_tokens += len(request.prompt)
        self.waiting.append(request)

    def schedule(self) -> list[Work]:
        """The next step's work, decoding requests first; empty only when nothing waits or runs."""
        work: list[Work] = []
        preempted, self._full = self._preemptions, False
        budget = self._budget - sum(1 + len(request.drafts) for request in self.running if request.decoding)
        for request in list(self.running):
            tokens = 1 if request.decoding else self._chunk(request, budget)
            if tokens and request.state_slot is not None:  # not preempted by one before it
                tokens = self._make_room(request, tokens)
                budget -= 0 if request.decoding else tokens
                if tokens:
                    work.append(self._plan(request, tokens))
        while budget > self._most_drafts and self.waiting and preempted == self._preemptions:
            request = self.waiting[0]
            restore = self.memory.admit(request, self.running)
            if restore is None:
                self._full = True
                break
            self.running.append(self.waiting.popleft())
            self._hit_tokens += request.computed
            tokens = self.memory.fitting(request, self._chunk(request, budget))
            work.append(self._plan(request, tokens, restore))
            budget -= tokens + work[-1].drafts
        work.sort(key=lambda item: not item.request.decoding)
        return work

    def schedule_ahead(self, work: Sequence[Work], carried: Callable[[Request], bool]) -> list[Work]:
        """The step behind `work` while that is being computed: one token more of every request that does not end by its
        length, whatever is chosen, with the drafts that fit then. Empty unless that is all there is to do: nobody can
        be admitted, every prompt is computed, and each choice is `carried` from step to step where it is made.
        """
        alive = [item for item in work if item.request.finish_reason is None]
        if len(alive) != len(self.running) or (self.waiting and not self._full):
            return []
        if any(not item.samples or not carried(item.request) for item in alive):
            return []
        most = self._most_drafts
        if most and any(item.tokens > 1 for item in alive):  # what follows a prompt is not where it can be taken from
            return []
        going = [item for item in alive if len(item.request.output) + 1 < item.request.max_tokens]
        found = []
        for item in going:
            request, tokens = item.request, item.tokens + 1
            if self.memory.fitting(request, tokens) < tokens:
                return []  # who was before it keeps a page that it needs next anyway
            self.memory.grow(request, tokens)
            # if that is where the last drafts lead to: else what is saved is nobody's
            save = max(self.memory.tail_wanted(request, tokens + right) for right in range(item.drafts + 1))
            found.append(Work(request, 1, samples=True, save=save, drafts=most, ahead=item.tokens))
        return found

    def advance(self, work: Sequence[Work], accepted: Mapping[Request, int] | None = None) -> None:
        """The work's tokens are in the caches, and of a request's drafts the first `accepted`. A request that ended
        meanwhile is left alone.
        """
        for item in work:
            request = item.request
            if request.state_slot is None:
                continue
            right = accepted.get(request, 0) if accepted and item.drafts else 0
            drafts = draft_count(request, request.known, item.drafts) if item.ahead else item.drafts
            end = request.computed + item.tokens + right
            self.memory.advance(request, item.tokens + right, item.save >= 0 and end % PAGE_TOKENS == 0)
            request.drafted += drafts
            request.accepted += right
            request.draft_steps += drafts > 0
            self._draft_steps += drafts > 0
            self._drafted += drafts
            self._accepted += right

    def uncount(self, request: Request, drafts: int) -> None:
        """Drafts accepted behind the answer's end saved no step: they count as never made."""
        request.drafted -= drafts
        request.accepted -= drafts
        self._drafted -= drafts
        self._accepted -= drafts

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it is and free what it holds; a finished one is left alone."""
        if request.finish_reason is not None:
            return
        request.finish_reason, self._full = reason, False
        self._finished += 1
        if request.state_slot is None:
            self.waiting.remove(request)
            return
        self.running.remove(request)
        self.memory.release(request)

    def check(self) -> None:
        """IntegrityError unless every page and slot is free, cached or held by a running request, exactly as often as
        the books say; when nothing runs, that is: free or cached.
        """
        self.memory.check((*self.running, *self.waiting))

    def _chunk(self, request: Request, budget: int) -> int:
        """How many of a prompt's tokens (or a preempted request's) to compute next."""
        start, end = request.computed, request.computed + max(0, min(request.pending, budget))
        if request.drafts and end == request.known > start + 1:
            end -= 1  # a preempted request: its drafts go with its newest token alone, as they would have
        if self.memory.prefix_caching:
            for cut in (request.branch, (request.known - 1) // PAGE_TOKENS * PAGE_TOKENS):
                end = cut if start < cut < end else end
        return end - start

    def _make_room(self, request: Request, tokens: int) -> int:
        """How many of the tokens can be computed after preempting later arrivals, if it must be; 0 when the request
        itself had to go.
        """
        while not (fitting := self.memory.fitting(request, tokens)):
            latest = self.running.pop()
            self._preemptions += 1
            self._recomputed += latest.computed
            self.memory.release(latest)
            self.waiting.appendleft(latest)
            if latest is request:
                return 0
        return fitting

    def _plan(self, request: Request, tokens: int, restore: int = -1) -> Work:
        self.memory.grow(request, tokens)
        samples = tokens == request.pending
        drafts = len(request.drafts) if samples else 0
        return Work(request, tokens, samples, restore, self.memory.tail_wanted(request, tokens), drafts)
