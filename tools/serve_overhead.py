#!/usr/bin/env python3
"""What the server costs over `LLM.generate`: the same prompts through both, in turn.

    python -m tools.serve_overhead --clients 50 --rounds 3

All clients ask at once and stream; the embedded model answers each with exactly --max-tokens tokens. Compared are the
seconds of processor time, which say more than rates where other work shares the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from wellhead.engine.llm import LLM
from wellhead.engine.sampling_params import SamplingParams
from wellhead.testing.load import Load, plan, run
from wellhead.testing.load_report import summary
from wellhead.text import encode_messages

RUNNING, PAGES = 32, 256


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    command = [sys.executable, "-m", "wellhead", "serve", "--port", "0", "--num-pages", str(PAGES)]
    command += ["--max-running-requests", str(RUNNING)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    url = ""
    while not url:
        line = server.stderr.readline()
        assert line, "the server ended"
        found = re.search(r"ready after .* at (http://\S+)", line)
        url = found[1] if found else ""
    llm = LLM(progress=False, num_pages=PAGES, max_running=RUNNING)
    params = SamplingParams(max_tokens=args.max_tokens, ignore_eos=True)
    ratios = []
    try:
        for number in range(args.rounds):
            load = Load(
                requests=args.clients, rate=float("inf"), prompt_words=12, prefix_share=0.0,
                max_tokens=args.max_tokens, ignore_eos=True, seed=number,
            )  # fmt: skip
            prompts = [encode_messages([{"role": "user", "content": asked.prompt}]) for asked in plan(load)]
            began, began_cpu = time.perf_counter(), time.process_time()
            tokens = sum(len(done.token_ids) for done in llm.generate(prompts, params))
            direct = tokens / (time.perf_counter() - began)
            direct_cpu, before = time.process_time() - began_cpu, processor_seconds(server.pid)
            served = summary(load, asyncio.run(run(load, url)), 60.0, 1.0)
            served_cpu = processor_seconds(server.pid) - before
            ratios.append(served_cpu / direct_cpu - 1)
            print(
                f"generate {direct:6.1f} tokens/s, {direct_cpu:5.1f} CPU s; served {served['tokens_per_s']:6.1f} "
                f"tokens/s, {served_cpu:5.1f} CPU s ({ratios[-1]:+.1%}); failed {served['failed']}; first token p50 "
                f"{served['ttft_p50_s']:.2f} s, p99 {served['ttft_p99_s']:.2f} s",
                flush=True,
            )
    finally:
        server.terminate()
        server.wait(60)
    print(f"the server's overhead in CPU seconds: median {statistics.median(ratios):+.1%} of {len(ratios)} rounds")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
