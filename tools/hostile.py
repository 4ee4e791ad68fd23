#!/usr/bin/env python3
"""Hostile requests against a server while well-behaved clients ask theirs: are their answers those they get alone?

    python -m tools.hostile --requests 5000 --clients 50

Starts `wellhead serve` over the embedded model, exits 1 if a hostile request got a 5xx or a wrong 4xx, a good client an
error or another answer (no tie is excused; the margin is told), or if memory, open files, pages or requests are left
behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tools.hostile_bodies import CHAT, Hostile, hostile_requests, http
from wellhead.server.limits import Limits
from wellhead.testing.record import append, host, origin

QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Italy?",
    "Translate into Chinese: good morning",
    "15 + 27 =",
    "What is the capital of Peru?",
)
ANSWER_SECONDS = Limits().request_seconds + 30  # the server says itself when an allowed answer took too long
MOST_GROWTH = 96 << 20  # bytes of resident memory between a fifth of the way and the end


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


def started(*words: str) -> tuple[subprocess.Popen[str], str]:
    """`wellhead serve` over the embedded model with these options, once it is ready, and its URL."""
    command = [sys.executable, "-m", "wellhead", "serve", "--port", "0", *words]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    told = []
    for line in server.stderr:
        told.append(line)
        if ready := re.search(r"ready after .* at (http://\S+)", line):
            return server, ready[1]
    raise SystemExit("".join(told))


def resident(pid: int) -> int:
    """Bytes of resident memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def settled(host: str, port: int) -> dict[str, float]:
    """/metrics once nothing runs or waits."""
    for _ in range(300):
        _, read = await exchange(
            host, port, Hostile("metrics", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        )
        found = {name: float(value) for name, value in re.findall(r"^(wellhead_\S+) (\S+)\r?$", read.decode(), re.M)}
        if found["wellhead_requests_running"] == found["wellhead_requests_waiting"] == 0:
            return found
        await asyncio.sleep(0.1)
    raise RuntimeError("requests are left behind")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append the result to FILE")
    args = parser.parse_args()
    began_on = host()
    limits = "--num-pages 128 --context-length 4096 --max-running-requests 16 --max-queued-requests 512"
    server, url = started(*limits.split())
    port = int(url.rpartition(":")[2])
    sizes: list[tuple[int, int]] = []
    began = time.perf_counter()

    def tick(done: int) -> None:
        if done % max(1, args.requests // 10) == 0:
            sizes.append((done, resident(server.pid)))
            print(f"{time.perf_counter() - began:7.1f} s  {done} requests, {sizes[-1][1] >> 20} MB", flush=True)

    try:
        files = open_files(server.pid)
        report = asyncio.run(
            attack("127.0.0.1", port, requests=args.requests, clients=args.clients, seed=args.seed, tick=tick)
        )
        metrics = asyncio.run(settled("127.0.0.1", port))
        left_files = open_files(server.pid)
    finally:
        server.terminate()
        status = server.wait(60)
    early = next(size for done, size in sizes if done >= args.requests // 5)
    growth = sizes[-1][1] - early
    for (name, code), count in sorted(report.statuses.items(), key=str):
        print(f"{count:6} {name}: {code}")
    for wrong in report.wrong[:20]:
        print(f"WRONG {wrong}")
    first = sorted(report.first_seconds)
    used = metrics['wellhead_pages{state="used"}']
    print(
        f"{args.requests} hostile requests, {len(report.wrong)} answered wrongly; {report.answers} good answers, "
        f"{len(report.differing)} differing {report.differing[:5]}; first token p50 {first[len(first) // 2]:.2f} s, "
        f"p99 {first[int(len(first) * 0.99)]:.2f} s; memory grew {growth / 2**20:.1f} MB; files {files} -> "
        f"{left_files}; pages in use {used:.0f}; exit status {status}"
    )
    fine = (
        not report.wrong and not report.differing and growth < MOST_GROWTH and left_files <= files + 8 and status == 0
    )
    statuses: dict[str, dict[str, int]] = {}
    for (name, code), count in sorted(report.statuses.items(), key=str):
        statuses.setdefault(name, {})[str(code)] = count
    record = {
        "kind": "hostile", "model": "tiny", "requests": args.requests, "clients": args.clients, "seed": args.seed,
        "seconds": round(time.perf_counter() - began, 1), "answered_wrongly": len(report.wrong),
        "good_answers": report.answers, "differing": len(report.differing), "statuses": statuses,
        "ttft_p50_s": round(first[len(first) // 2], 2), "ttft_p99_s": round(first[int(len(first) * 0.99)], 2),
        "memory_mb": {str(done): size >> 20 for done, size in sizes}, "files": [files, left_files],
        "pages_in_use": used, "exit_status": status, **began_on, **origin(),
        "command": shlex.join(["python", "-m", "tools.hostile", *sys.argv[1:]]),
    }  # fmt: skip
    append(args.jsonl, record)
    return 0 if fine and used == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
