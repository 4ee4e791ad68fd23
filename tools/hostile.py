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
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tools.hostile_attack import attack, exchange
from tools.hostile_bodies import Hostile
from wellhead.testing.record import append, host, origin

MOST_GROWTH = 96 << 20  # bytes of resident memory between a fifth of the way and the end


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
