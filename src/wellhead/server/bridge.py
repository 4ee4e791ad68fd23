"""The engine's thread: it makes the model, owns it and steps it. Requests reach it through a queue, what they gain goes
to the event loop, once a step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from wellhead.engine.llm import LLM
from wellhead.engine.output import Delta
from wellhead.engine.pages import IntegrityError
from wellhead.engine.request import Request, RequestError
from wellhead.engine.scheduler import Counters
from wellhead.server.errors import ApiError, bad, busy, unavailable
from wellhead.server.job import Job, Piece
from wellhead.server.limits import Limits
from wellhead.server.metrics import Metrics

_LOG = logging.getLogger("wellhead.server")
_MOST_FAILURES = 3  # failed steps, one after the other, before the engine is given up

_Gain = tuple[Job, int, Piece, RequestError | Exception | None]


class Bridge:
    """`make` builds the model in the engine's thread, `announce` is told when requests are taken. `ended` is called on
    the loop when that thread is over; `failure` then holds the exception it died of, if it did.
    """

    def __init__(
        self,
        make: Callable[[], LLM],
        limits: Limits,
        metrics: Metrics,
        *,
        may_recover: bool = True,
        announce: Callable[[LLM], None] = lambda llm: None,
    ):
        self.limits, self.metrics = limits, metrics
        self.failure: BaseException | None = None
        self.llm: LLM | None = None
        self.draining = False
        self.counters: Counters | None = None
        self._make, self._may_recover, self._announce = make, may_recover, announce
        self._orders: SimpleQueue[tuple[str, Sequence[tuple[Request, Job, int]], Sequence[Request]]] = SimpleQueue()
        self._jobs: set[Job] = set()  # the loop's
        self._known: dict[Request, tuple[Job, int]] = {}  # the engine's thread's
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: Callable[[], None] = lambda: None
        self._most = self._preparing = 0  # choices

    # -- the event loop's side

    def start(self, ended: Callable[[], None]) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), ended
        self._thread.start()

    @property
    def open_choices(self) -> int:
        return sum(len(job.requests) for job in self._jobs)

    def serving(self) -> LLM:
        """The model; 503 while there is none, or no longer."""
        if self.failure is not None:
            raise ApiError(500, "the engine has failed; the server is ending", code="engine_failed")
        if self.draining:
            raise unavailable("the server is ending and takes no new work", "shutting_down", 30)
        if self.llm is None:
            raise unavailable("the model is being loaded", "loading", 5)
        return self.llm

    @contextmanager
    def reserved(self, choices: int) -> Iterator[None]:
        """Room for so many choices while they are prepared, which takes memory too."""
        self._room(choices)
        self._preparing += choices
        try:
            yield
        finally:
            self._preparing -= choices

    def _room(self, choices: int) -> None:
        """429 unless so many choices can be queued; 400 if they never can."""
        self.serving()
        if choices > self._most:
            raise bad("n", f"{choices} choices in one request, this server takes {self._most} at most")
        taken = self.open_choices + self._preparing
        if taken + choices > self._most:
            raise busy(f"{taken} choices run or wait, the limit is {self._most}; try again later", 1)

    def submit(self, requests: Sequence[Request]) -> Job:
        """Queue one HTTP request's engine requests together; its job ends after `request_seconds`."""
        self._room(len(requests))
        assert self._loop is not None
        job = Job(requests, self._abort)
        self._jobs.add(job)
        seconds = self.limits.request_seconds
        timeout = ApiError(504, f"the request took longer than {seconds:g} seconds, the limit here", code="timeout")
        job.timer = self._loop.call_later(seconds, job.fail, timeout)
        self._orders.put(("submit", [(request, job, i) for i, request in enumerate(requests)], ()))
        return job

    def forget(self, job: Job) -> None:
        """A job whose reader is gone."""
        job.stop()
        if job.timer is not None:
            job.timer.cancel()
        self._jobs.discard(job)

    def fail_all(self, error: ApiError) -> None:
        for job in list(self._jobs):
            job.fail(error)

    def stop(self) -> None:
        """Let the engine's thread end after its present step."""
        self._orders.put(("stop", (), ()))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _abort(self, requests: Sequence[Request]) -> None:
        self._orders.put(("abort", (), requests))

    def _deliver(self, gains: Sequence[_Gain]) -> None:
        for job, index, piece, error in gains:
            self._observe(job, index, piece)
            if error is None:
                job.gained(index, piece)
            else:
                job.fail(ApiError(500, f"the request failed: {type(error).__name__}: {error}", code="request_failed"))

    def _observe(self, job: Job, index: int, piece: Piece) -> None:
        count = len(piece.token_ids)
        if count and index not in job.first:
            job.first[index] = piece.at
            self.metrics.first_token.observe(piece.at - job.arrived)
        self.metrics.generated.inc(count)
        if piece.finish_reason is not None:
            self.metrics.finished.labels(piece.finish_reason).inc()
            after = len(job.requests[index].output) - 1
            if after > 0 and index in job.first:
                self.metrics.per_token.observe((piece.at - job.first[index]) / after)
            self.metrics.duration.observe(piece.at - job.arrived)

    def _fail_loop(self, error: BaseException | None) -> None:
        if error is not None:
            self.fail_all(ApiError(500, "the engine has failed; the server is ending", code="engine_failed"))
        self._ended()

    # -- the engine's thread

    def _run(self) -> None:
        try:
            llm = self._make()
            self._most = llm.engine.max_running + self.limits.queued
            self.counters, self.llm = llm.engine.counters, llm
            self._announce(llm)  # now, not before: who reads it may ask at once
            self._serve(llm)
        except BaseException as error:
            _LOG.debug("the engine ended", exc_info=True)
            self.failure = error
        finally:
            assert self._loop is not None
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._fail_loop, self.failure)

    def _serve(self, llm: LLM) -> None:
        engine, failures = llm.engine, 0
        while self._obey(llm):
            try:
                gains = engine.step()
            except Exception as error:
                failures += 1
                self._recover(llm, error, failures)
                continue
            failures = 0
            self._tell(gains)
            self.counters = engine.counters

    def _obey(self, llm: LLM) -> bool:
        """Take what was ordered, waiting when there is nothing to step; False to end."""
        engine = llm.engine
        while True:
            try:
                what, submitted, aborted = self._orders.get(block=not engine.busy)
            except Empty:
                return True
            if what == "stop":
                return False
            for request, job, index in submitted:
                self._known[request] = (job, index)
                engine.submit(request)
            for request in aborted:
                self._known.pop(request, None)
                engine.abort(request)
            self.counters = engine.counters

    def _tell(self, gains: Sequence[tuple[Request, Delta]]) -> None:
        now = time.perf_counter()
        told: list[_Gain] = []
        for request, delta in gains:
            job, index = self._known[request]
            end = len(request.output)
            rows = request.logprobs[end - len(delta.token_ids) : end] if request.params.logprobs else []
            told.append((job, index, Piece(delta.text, delta.token_ids, rows, delta.finish_reason, now), request.error))
            if delta.finish_reason is not None:
                del self._known[request]
        if told:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._deliver, told)

    def _recover(self, llm: LLM, error: Exception, failures: int) -> None:
        """A step failed as a whole: tell the requests that it ended, and go on with the others where that is safe."""
        ended = [request for request in self._known if request.finish_reason is not None]
        ended = ended or list(self._known)  # it failed before it was known who is in it
        _LOG.error("a step failed; %d of %d requests end", len(ended), len(self._known), exc_info=error)
        told: list[_Gain] = []
        for request in ended:
            llm.engine.abort(request)
            told.append((*self._known.pop(request), Piece("", [], [], "error", time.perf_counter()), error))
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, told)
        # a card, or other ranks, may be in the middle of the step
        if not self._may_recover or failures >= _MOST_FAILURES or isinstance(error, IntegrityError | ConnectionError):
            raise error
        llm.engine.check()
