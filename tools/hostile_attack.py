"""Hostile requests and well-behaved clients side by side, against a server that runs; what each was answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tools.hostile_bodies import CHAT, Hostile, hostile_requests, http
from wellhead.server.limits import Limits

QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Italy?",
    "Translate into Chinese: good morning",
    "15 + 27 =",
    "What is the capital of Peru?",
)
ANSWER_SECONDS = Limits().request_seconds + 30  # the server says itself when an allowed answer took too long


@dataclass
class Report:
    """statuses of hostile requests by name; `wrong` are those whose answer is not allowed."""

    statuses: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    answers: int = 0
    differing: list[str] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)


async def exchange(host: str, port: int, hostile: Hostile) -> tuple[int | None, bytes]:
    """(status or None, what was read)."""
    reader, writer = await asyncio.open_connection(host, port)
    read = b""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            with contextlib.suppress(ConnectionError):  # refused while it was still being sent
                writer.write(hostile.data)
                await writer.drain()
            if hostile.manner == "cut":
                return None, b""
            if hostile.manner == "read":
                with contextlib.suppress(ConnectionError):
                    while part := await reader.read(1 << 16):
                        read += part
            while hostile.manner in ("leave", "stall") and len(read) < hostile.bytes_read:
                part = await reader.read(64)
                if not part:
                    break
                read += part
                if hostile.manner == "stall":
                    await asyncio.sleep(0.02)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await writer.wait_closed()
    status = re.match(rb"HTTP/1\.1 (\d+)", read)
    return int(status[1]) if status else None, read


def judge(hostile: Hostile, status: int | None, read: bytes) -> str | None:
    """What is wrong with the answer, None for nothing."""
    if hostile.manner != "read":
        return None
    said = f"{hostile.name}: {status} {read[-300:]!r} to {hostile.data[-300:]!r}"
    if status is None:
        return None if hostile.name in ("long header", "no HTTP") else said
    if status == 429:
        return None
    if status >= 500 or (hostile.statuses is not None and status not in hostile.statuses):
        return said
    if status >= 400 and hostile.name not in ("long header", "no HTTP", "two lengths", "bad chunks"):
        try:
            error = json.loads(read.partition(b"\r\n\r\n")[2])["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"]
        except (ValueError, KeyError, AssertionError):
            return f"not OpenAI's shape: {said}"
    return None


async def ask(host: str, port: int, number: int) -> tuple[list[tuple[str, float]], float]:
    """A well-behaved client: (token, margin to the next) of its streamed answer, seconds to the first token."""
    body = {
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "temperature": 0 if number % 2 else 0.8,
        "seed": number,
        "ignore_eos": True,
    }
    reader, writer = await asyncio.open_connection(host, port)
    began, first, tokens = time.perf_counter(), 0.0, []
    try:
        writer.write(http(CHAT, json.dumps(body).encode()))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_SECONDS)
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"client {number}: {head[:100]!r} {await reader.read(500)!r}")
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            first = first or time.perf_counter() - began
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"client {number}: {event}")
            for choice in event["choices"]:
                for entry in (choice["logprobs"] or {"content": []})["content"]:
                    top = [other["logprob"] for other in entry["top_logprobs"]]
                    tokens.append((entry["token"], top[0] - top[1]))
    finally:
        writer.close()
    return tokens, first


async def attack(
    host: str, port: int, *, requests: int, clients: int, seed: int, at_once: int = 24, tick: Any = None
) -> Report:
    """All hostile requests, `at_once` together, beside `clients` that ask until these are through."""
    report = Report()
    alone = [(await ask(host, port, number))[0] for number in range(clients)]
    through = asyncio.Event()

    async def good(number: int) -> None:
        while True:
            found, first = await ask(host, port, number)
            report.answers += 1
            report.first_seconds.append(first)
            if [token for token, _ in found] != [token for token, _ in alone[number]]:
                place = next(i for i, (a, b) in enumerate(zip(found, alone[number], strict=False)) if a[0] != b[0])
                report.differing.append(f"client {number}, token {place}, margin {alone[number][place][1]:.2e}")
            if through.is_set():
                return

    async def bad(turn: asyncio.Queue[Hostile]) -> None:
        while True:
            try:
                hostile = turn.get_nowait()
            except asyncio.QueueEmpty:
                return
            try:
                status, read = await exchange(host, port, hostile)
            except TimeoutError:
                report.wrong.append(f"{hostile.name}: no answer to {hostile.data[-300:]!r}")
                continue
            report.statuses[hostile.name, status] += 1
            if (wrong := judge(hostile, status, read)) is not None:
                report.wrong.append(wrong)
            if tick is not None:
                tick(sum(report.statuses.values()))

    turn: asyncio.Queue[Hostile] = asyncio.Queue()
    for hostile in islice(hostile_requests(seed), requests):
        turn.put_nowait(hostile)
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(good(number))
        await asyncio.gather(*(bad(turn) for _ in range(at_once)))
        through.set()
    return report
