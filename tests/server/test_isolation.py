"""One client's failure, departure or slowness is not another's; a server ends as it was told to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import httpx
import pytest
import torch
from tests.server.conftest import load
from tools.hostile_bodies import http

from fakes.server import RunningServer
from wellhead.engine.core import Engine
from wellhead.engine.llm import LLM
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.server import protocol
from wellhead.server.answers import Probabilities
from wellhead.server.job import Job, Piece
from wellhead.server.limits import Limits
from wellhead.server.prepare import MOST_LOGPROBS, Preparer
from wellhead.server.sse import EventStream

LONG = {"ignore_eos": True, "max_tokens": 30}


@pytest.fixture(autouse=True)
def nothing_left(server: RunningServer) -> Iterator[None]:
    yield
    server.idle()


@pytest.fixture
def own() -> Iterator[Callable[..., RunningServer]]:
    """Makes servers of a test's own."""
    made: list[RunningServer] = []

    def make(*args: Any, **options: Any) -> RunningServer:
        made.append(RunningServer(*args, **options))
        return made[-1]

    yield make
    for running in made:
        running.close()


def beside(count: int, work: Callable[[], Any]) -> tuple[list[threading.Thread], list[Any]]:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


def content(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_request_that_fails_while_sampling_fails_alone(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = content(server.chat(**LONG))
    real = Preparer._adjust

    def sabotaged(self: Preparer, body: Any, constraint: Any) -> Any:
        if body.user != "saboteur":
            return real(self, body, constraint)

        def explode(row: Any, output: Any) -> Any:
            if len(output) == 4:
                raise ZeroDivisionError("in the middle of an answer")
            return row

        return explode

    monkeypatch.setattr(Preparer, "_adjust", sabotaged)
    threads, found = beside(3, lambda: content(server.chat(**LONG)))
    bad = server.chat(**LONG, user="saboteur")
    assert bad.status_code == 500 and bad.json()["error"]["code"] == "request_failed"
    assert "ZeroDivisionError: in the middle" in bad.json()["error"]["message"]
    streamed = server.chat(**LONG, user="saboteur", stream=True).text.split("\n\n")
    assert json.loads(streamed[-3][6:])["error"]["code"] == "request_failed" and len(streamed) > 6
    for thread in threads:
        thread.join()
    assert found == [alone] * 3


def test_a_step_that_fails_ends_its_requests_only(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = content(server.chat(**LONG))
    real, fail = Engine.step, [True]

    def step(self: Engine) -> Any:
        if fail and len(self._texts) == 2:
            fail.clear()
            raise MemoryError("no room in this step")
        return real(self)

    monkeypatch.setattr(Engine, "step", step)
    threads, found = beside(2, lambda: server.chat(**LONG))
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in found] == [500, 500]
    assert content(server.chat(**LONG)) == alone


def test_who_waits_outlives_a_failed_step(own: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch) -> None:
    running = own(lambda phase: LLM(progress=False, num_pages=24, max_running=1, phase=phase))
    alone, engine = content(running.chat(**LONG)), running.llm.engine
    real, fail = engine._runner.launch, [True]

    def launch(work: Any) -> Any:
        if fail and engine.counters.waiting == 2:
            fail.clear()
            raise MemoryError("no room in this step")
        return real(work)

    monkeypatch.setattr(engine._runner, "launch", launch)
    threads, found = beside(3, lambda: running.chat(**LONG))
    for thread in threads:
        thread.join()
    failed = [answer for answer in found if answer.status_code == 500]
    assert len(failed) == 1 and "MemoryError: no room" in failed[0].json()["error"]["message"]
    assert [content(answer) for answer in found if answer not in failed] == [alone] * 2
    running.idle()


def test_an_engine_that_keeps_failing_ends_the_server(
    own: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = own(load)
    monkeypatch.setattr(Engine, "step", lambda self: 1 / 0)
    assert [running.chat().status_code for _ in range(3)] == [500, 500, 500]
    running._thread.join(10)
    assert not running._thread.is_alive() and isinstance(running.life.bridge.failure, ZeroDivisionError)


def test_a_card_or_other_ranks_do_not_survive_a_failed_step(
    own: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = own(load, may_recover=False)
    monkeypatch.setattr(Engine, "step", lambda self: 1 / 0)
    assert running.chat().status_code == 500
    running._thread.join(10)
    assert isinstance(running.life.bridge.failure, ZeroDivisionError)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_forgotten(server: RunningServer, stream: bool) -> None:
    before = server.llm.engine.counters.finished
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3000, "ignore_eos": True, "stream": stream}
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as sock:
        sock.sendall(http("/v1/chat/completions", json.dumps(body).encode()))
        if stream:
            assert b"200 OK" in sock.recv(64)
        else:
            while not server.llm.engine.busy:
                time.sleep(0.005)
    began = time.monotonic()
    server.idle()
    assert time.monotonic() - began < 5 and server.llm.engine.counters.finished == before + 1


def test_a_long_answer_is_joined_in_linear_time() -> None:
    answer, began = Piece("", [], [], None), time.process_time()
    for token in range(40_000):
        answer.extend(Piece("a", [token], [{token: -0.5}], None))
    answer.extend(Piece("b", [7], [{7: -1.0}], "stop", 3.0))
    assert time.process_time() - began < 2  # copied at each step it takes ten seconds
    assert answer.token_ids == [*range(40_000), 7] and len(answer.logprobs) == len(answer.text) == 40_001
    assert (answer.finish_reason, answer.at) == ("stop", 3.0)


def test_log_probabilities_are_written_as_they_come(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at the end they held the event loop for ten seconds, of a request that is allowed."""
    at_once: list[int] = []
    chat = Probabilities.chat

    def counted(self: Probabilities, ids: Any, rows: Any) -> Any:
        at_once.append(len(rows))
        return chat(self, ids, rows)

    monkeypatch.setattr(Probabilities, "chat", counted)
    asked = {"n": 3, "logprobs": True, "top_logprobs": 3, "seed": 1, "temperature": 1.0, **LONG, "max_tokens": 40}
    whole = server.chat(**asked).json()["choices"]
    assert sum(at_once) == 120 and max(at_once) < 40
    streamed: list[list[Any]] = [[], [], []]
    for line in server.chat(**asked, stream=True).text.split("\n\n")[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            streamed[choice["index"]] += (choice["logprobs"] or {"content": []})["content"]
    assert [choice["logprobs"] for choice in whole] == [{"content": one, "refusal": None} for one in streamed]
    assert [choice["index"] for choice in whole] == [0, 1, 2] and all(len(one) == 40 for one in streamed)


def test_log_probabilities_for_a_slow_reader_come_in_parts() -> None:
    request = Request([1], SamplingParams(), 9000, torch.Generator())
    found: list[Piece] = []
    turns = 0

    async def read() -> None:
        nonlocal turns
        job = Job([request], lambda requests: None)
        for token in range(9000):
            reason = "length" if token == 8999 else None
            job.gained(0, Piece("a", [token], [{token: -0.5}], reason))  # type: ignore[arg-type]
        reading = asyncio.ensure_future(take(job))
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)

    async def take(job: Job) -> None:
        found.extend([piece async for _, piece in job.pieces()])

    asyncio.run(read())
    assert max(len(piece.logprobs) for piece in found) <= 256 and turns > 30
    joined = found[0]
    for piece in found[1:]:
        joined.extend(piece)
    assert joined == Piece("a" * 9000, [*range(9000)], [{token: -0.5} for token in range(9000)], "length")


def test_an_answer_is_no_longer_than_its_log_probabilities_allow(server: RunningServer) -> None:
    preparer = Preparer(server.llm, None, False)
    body = {"messages": [{"role": "user", "content": "x"}], "n": 64, "logprobs": True, "top_logprobs": 20}
    longest = preparer.chat(protocol.Chat.model_validate(body)).requests[0].max_tokens
    assert longest == MOST_LOGPROBS // (64 * 21)
    assert preparer.chat(protocol.Chat.model_validate({**body, "n": 1})).requests[0].max_tokens > longest


def test_a_reader_that_is_stuck_is_dropped() -> None:
    """Over a socket this takes megabytes of buffers: here the connection itself says that it is full."""
    left: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: {}\n\n"
        finally:
            left.append("aborted")

    async def read() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) > 3:
                await asyncio.Event().wait()

        async def receive() -> Any:
            await asyncio.Event().wait()

        for version in ("2.3", "2.4"):
            sent.clear()
            scope = {"type": "http", "asgi": {"spec_version": version}}
            async with asyncio.timeout(5):
                await EventStream(b"", events(), stall_seconds=0.05)(scope, receive, send)
            assert len(sent) == 4

    asyncio.run(read())
    assert left == ["aborted"] * 2


def test_before_the_model_is_there(own: Callable[..., RunningServer]) -> None:
    go = threading.Event()

    def slow(phase: Any) -> Any:
        with phase("waiting for a test"):
            assert go.wait(20)
        return load(phase)

    running = own(slow, wait=False)
    try:
        while running.life._story.doing != "waiting for a test":
            time.sleep(0.01)
        assert running.client.get("/health").status_code == 200
        assert running.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        waiting = running.client.get("/ready")
        assert waiting.status_code == 503 and "waiting for a test" in waiting.text
        early = running.chat()
        assert early.status_code == 503 and early.headers["retry-after"] and "loaded" in early.text
    finally:
        go.set()
    running.wait()
    assert running.chat().status_code == 200
    told = running.said.getvalue().splitlines()
    assert told[0].startswith("wellhead: listening at http://127.0.0.1:")
    assert [line.split()[0] for line in told[1:-1]] == ["waiting", "checking", "loading", "making", "warming"]
    assert told[-1].startswith("wellhead: tiny on 1 rank, 6,144 tokens in 24 pages, context 4,096, 8 requests")


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    def broken(phase: Any) -> Any:
        with phase("loading weights"):
            raise ValueError("a file is missing")

    running = RunningServer(broken, wait=False)
    running._thread.join(10)
    assert not running._thread.is_alive() and str(running.life.bridge.failure) == "a file is missing"
    assert "loading weights" in running.said.getvalue() and "failed after" in running.said.getvalue()


def test_the_end_lets_answers_finish(own: Callable[..., RunningServer]) -> None:
    running = own(load)
    alone = content(running.chat(**LONG))
    threads, found = beside(2, lambda: running.chat(**LONG))
    while running.life.bridge.open_choices < 2:
        time.sleep(0.005)
    running.end()
    while not running.life.bridge.draining:
        time.sleep(0.005)
    with pytest.raises(httpx.TransportError), httpx.Client(base_url=running.url) as late:
        if late.get("/ready").status_code == 503:
            raise httpx.ConnectError("refused by a word instead of a closed port")
    for thread in threads:
        thread.join()
    assert [content(answer) for answer in found] == [alone] * 2
    running._thread.join(10)
    assert not running._thread.is_alive() and "2 answers have" in running.said.getvalue()


def test_grace_ends(own: Callable[..., RunningServer]) -> None:
    running = own(load, limits=Limits(grace_seconds=0.3))
    threads, found = beside(1, lambda: running.chat(ignore_eos=True, max_tokens=3000, stream=True))
    while not running.llm.engine.busy:
        time.sleep(0.005)
    time.sleep(0.2)
    began = time.monotonic()
    running.end()
    running._thread.join(10)
    threads[0].join(10)
    assert time.monotonic() - began < 5
    assert json.loads(found[0].text.split("\n\n")[-3][6:])["error"]["code"] == "shutting_down"
