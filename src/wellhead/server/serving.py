"""A server from its first breath to its last: the port before the memory, the engine's thread, signals, draining."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import uvicorn

from wellhead.engine.launch import EXIT_INTERRUPTED
from wellhead.engine.llm import LLM
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.story import Phase, Story
from wellhead.server.app import make_app
from wellhead.server.bridge import Bridge
from wellhead.server.errors import unavailable
from wellhead.server.gate import allowed_hosts
from wellhead.server.grammar import Grammars
from wellhead.server.limits import Limits
from wellhead.server.metrics import Metrics
from wellhead.server.prepare import Preparer

Load = Callable[[Phase], LLM]
_LEAVE_SECONDS = 2.0  # for answers to be written once their requests are ended


@dataclass(frozen=True)
class Serving:
    """host, port: where to listen; port 0 takes a free one. names: what the model answers to. may_recover: whether a
    step that failed leaves the engine usable (a card, or other ranks, would be in the middle of it).
    """

    names: list[str]
    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    thinking: bool = False
    ranks: int = 1
    may_recover: bool = True
    limits: Limits = field(default_factory=Limits)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: who connects early waits; OSError that says which address and what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except (OSError, OverflowError) as error:
        sock.close()
        raise OSError(f"cannot listen on {host}:{port}: {error}; choose another with --host and --port") from None
    sock.set_inheritable(True)
    return sock


def warm_up(llm: LLM) -> None:
    """A request, so that none of a user's is the first; kernels were compiled when the engine was made."""
    engine = llm.engine
    llm.generate([[next(iter(engine.eos_ids))]], SamplingParams(max_tokens=2, ignore_eos=True))
    engine.forget_prefixes()


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: see `Life`."""
        yield


class Life:
    """A server: `run` it in an event loop; `told_to_end` is what signals call."""

    def __init__(self, serving: Serving, load: Load, story: Story):
        self._serving, self._story = serving, story
        self._metrics = Metrics(lambda: self.bridge.counters, self._graph_misses)
        self.bridge = Bridge(
            lambda: self._make(load),
            serving.limits,
            self._metrics,
            may_recover=serving.may_recover,
            announce=lambda llm: story.ready(llm.engine, serving.names[0], serving.ranks, self.url, llm.sums),
        )
        self._preparer: Preparer  # there once the bridge serves
        self._server: _Uvicorn | None = None
        self.url = ""

    async def run(self, sock: socket.socket) -> None:
        host, port = sock.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        app = make_app(
            self.bridge, lambda: self._preparer, self._serving.names, bound=self._serving.host, key=self._serving.key,
            doing=lambda: self._story.doing,
        )  # fmt: skip
        if self._serving.key is None and allowed_hosts(self._serving.host) is None:
            self._story.tell("wellhead: whoever reaches this address may use it; --api-key-file asks them for a key")
        grace = self._serving.limits.grace_seconds
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off",
            timeout_graceful_shutdown=round(grace + _LEAVE_SECONDS) + 1,
        )  # fmt: skip
        self._server = _Uvicorn(config)
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.told_to_end)
        self._story.tell(f"wellhead: listening at {self.url}, {self._serving.names[0]} is being loaded")
        self.bridge.start(self._engine_ended)
        try:
            await self._server.serve(sockets=[sock])
        finally:
            self.bridge.stop()
            while self.bridge.alive:  # a step may be running; signals must still be heard
                await asyncio.sleep(0.02)

    def _make(self, load: Load) -> LLM:
        llm = load(self._story.phase)
        with self._story.phase("warming up"):
            warm_up(llm)
            grammars = Grammars(llm.tokenizer, llm.config.vocab_size) if llm.has_tokenizer else None
            self._preparer = Preparer(llm, grammars, self._serving.thinking)
        return llm

    def _graph_misses(self) -> int | None:
        return None if self.bridge.llm is None else self.bridge.llm.engine.graph_misses

    def told_to_end(self) -> None:
        """The first time: no new work, and time for what runs. The second: now."""
        assert self._server is not None
        grace = self._serving.limits.grace_seconds
        loop = asyncio.get_running_loop()
        if self.bridge.llm is None and self.bridge.failure is None:
            self._story.tell("wellhead: told to end while loading")
            os._exit(EXIT_INTERRUPTED)  # nothing is lost, and loading does not look up
        if self.bridge.draining:
            self._end_now()
            return
        self.bridge.draining = True
        self._server.should_exit = True
        left = self.bridge.open_choices
        if left:
            self._story.tell(f"wellhead: {left} answers have {grace:g} s to finish; again to end now")
        loop.call_later(grace, self._end_now)

    def _end_now(self) -> None:
        self.bridge.fail_all(unavailable("the server has ended", "shutting_down", 30))

    def _engine_ended(self) -> None:
        assert self._server is not None
        self._server.should_exit = True


def serve(serving: Serving, load: Load) -> None:
    """Serve until told to end; raises what the engine died of. The port is taken before `load`, which runs in the
    engine's thread, takes any memory.
    """
    life = Life(serving, load, Story())
    with contextlib.closing(listen(serving.host, serving.port)) as sock:
        asyncio.run(life.run(sock))
    if life.bridge.failure is not None:
        raise life.bridge.failure
