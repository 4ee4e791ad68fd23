#!/usr/bin/env python3
"""What the server costs over `LLM.generate`: the same prompts through both, in turn.

    python -m tools.serve_overhead --clients 50 --rounds 5

All clients ask at once and stream; the embedded model answers each with exactly --max-tokens tokens. Compared are the
seconds of processor time, which say more than rates where other work shares the cores; the client's are not among them.
A core's own speed drifts, here by a tenth from one answer to the next: what counts is the sum over all rounds, of which
every second one asks the server first, and its standard error over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.hostile import started
from wellhead.engine.llm import LLM
from wellhead.engine.sampling_params import SamplingParams
from wellhead.testing.load import Load, plan, run
from wellhead.testing.load_report import summary
from wellhead.testing.record import append, host, origin
from wellhead.text import encode_messages

RUNNING, PAGES = 32, 256
WAYS = {"cpu": "in CPU seconds", "rate": "in time a token"}


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def total(rounds: Sequence[Mapping[str, float]], way: str) -> tuple[float, float]:
    """The overhead of all rounds together, in CPU seconds or in time a token, and its standard error: each round left
    out in turn (jackknife).
    """

    def of(some: Sequence[Mapping[str, float]]) -> float:
        if way == "cpu":
            return sum(one["served_cpu_s"] for one in some) / sum(one["generate_cpu_s"] for one in some) - 1
        served = sum(1 / one["served_tokens_per_s"] for one in some)
        return served / sum(1 / one["generate_tokens_per_s"] for one in some) - 1

    count = len(rounds)
    if count < 2:
        return of(rounds), float("nan")
    left_out = [of([*rounds[:number], *rounds[number + 1 :]]) for number in range(count)]
    return of(rounds), ((count - 1) * statistics.pvariance(left_out)) ** 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append the result to FILE")
    args = parser.parse_args()
    began_on = host()
    server, url = started("--num-pages", str(PAGES), "--max-running-requests", str(RUNNING))
    llm = LLM(progress=False, num_pages=PAGES, max_running=RUNNING)
    params = SamplingParams(max_tokens=args.max_tokens, ignore_eos=True)
    rounds: list[dict[str, float]] = []

    def direct(prompts: Sequence[str]) -> dict[str, float]:
        began, began_cpu = time.perf_counter(), time.process_time()
        tokens = sum(len(done.token_ids) for done in llm.generate(prompts, params))
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        return {"generate_tokens_per_s": tokens / seconds, "generate_cpu_s": cpu}

    def served(load: Load) -> dict[str, float]:
        before = processor_seconds(server.pid)
        found = summary(load, asyncio.run(run(load, url)), 60.0, 1.0)
        assert not found["failed"] and found["tokens_per_s"], found
        cpu = processor_seconds(server.pid) - before
        return {"served_tokens_per_s": found["tokens_per_s"], "served_cpu_s": cpu, "ttft_p99_s": found["ttft_p99_s"]}

    try:
        for number in range(args.rounds):
            load = Load(
                requests=args.clients, rate=float("inf"), prompt_words=12, prefix_share=0.0,
                max_tokens=args.max_tokens, ignore_eos=True, seed=number,
            )  # fmt: skip
            prompts = [encode_messages([{"role": "user", "content": asked.prompt}]) for asked in plan(load)]
            # in turn, so that what else runs here disturbs both alike
            found = {**direct(prompts), **served(load)} if number % 2 else {**served(load), **direct(prompts)}
            found["overhead_cpu"] = found["served_cpu_s"] / found["generate_cpu_s"] - 1
            found["overhead_rate"] = found["generate_tokens_per_s"] / found["served_tokens_per_s"] - 1
            rounds.append({name: round(value, 4) for name, value in found.items()})
            print(json.dumps(rounds[-1]), flush=True)
    finally:
        server.terminate()
        server.wait(60)
    overheads = {way: total(rounds, way) for way in WAYS}
    medians = {name: round(statistics.median(one[name] for one in rounds), 4) for name in rounds[0]}
    said = [f"{overheads[way][0]:+.1%} ± {overheads[way][1]:.1%} {what}" for way, what in WAYS.items()]
    print(f"the server's overhead over {len(rounds)} rounds: {', '.join(said)}")
    record: dict[str, Any] = {
        "kind": "overhead", "model": "tiny", "clients": args.clients, "max_tokens": args.max_tokens,
        "rounds": len(rounds), **medians,
        **{f"overhead_{way}_of_all": round(found, 4) for way, (found, _) in overheads.items()},
        **{f"overhead_{way}_error": round(error, 4) for way, (_, error) in overheads.items()},
        "overhead_cpu_of_each": [one["overhead_cpu"] for one in rounds],
        "overhead_rate_of_each": [one["overhead_rate"] for one in rounds],
        **began_on, **origin(), "command": shlex.join(["python", "-m", "tools.serve_overhead", *sys.argv[1:]]),
    }  # fmt: skip
    append(args.jsonl, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
