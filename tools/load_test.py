"""Thousands of requests of random lengths, with shared prefixes and aborts, against a model:

    python -m tools.load_test [--device cuda] [--eager] [--requests 10000] [--concurrency 64] [--speculative-tokens 2]

Every prompt is a list of words said again and again, cut anywhere: many share a beginning, some go on where an answer
was. Each answer must be what the same model says to the prompt alone, one request at a time and without drafts, or
part from it by a tie (wellhead.testing.ties); what an aborted request had said must be its beginning. At the end every
page must be free or in the prefix cache, and memory must not have grown after the first 1,000 requests. The last line
is one JSON object; the exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tools.load_check import resident
from tools.train_tiny.facts import KEYS
from wellhead.engine.llm import LLM
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.evals.against import judge_by
from wellhead.testing.record import origin
from wellhead.testing.ties import Tally
from wellhead.testing.traffic import traffic

LONGEST, MOST = 600, 64  # tokens of a prompt, and of most answers
SHORT, LONG = 64, 540  # so short a prompt has answers up to so long: they outgrow their pages, others are preempted
WARM = 1000  # requests after which memory may not grow
ABORTS = 0.05  # share of steps behind which a request is aborted
# Allocated: the allocator's smallest block. Reserved: one of its segments. Resident: what the C library keeps of freed
# memory; a request that is not freed takes more than 10 KB, so that 9,000 of them are far beyond it.
GROWTH = {"allocated": 2 << 20, "reserved": 20 << 20, "resident": 32 << 20}

Asked = tuple[list[int], list[int]]  # a prompt, and its longest answer when it is alone


def prompts(encode: Callable[[str], list[int]], dice: random.Random, count: int) -> list[list[int]]:
    """`count` different prompts over about a sixth as many lists of words."""
    lists = [dice.sample(KEYS, dice.randint(3, len(KEYS) // 2)) for _ in range(max(1, count // 6))]
    found: dict[str, list[int]] = {}
    while len(found) < count:
        words = dice.choice(lists)
        said = dice.randint(len(words) + 2, max(LONGEST, len(words) + 3))
        text = " ".join(words[i % len(words)] for i in range(said))
        found[text] = encode(text)[:LONGEST]
    return list(found.values())


@contextmanager
def told(what: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Takes counts of what is done: a bar on a terminal, else a line for every tenth."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done, began = 0, time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.advance(bar, count)
            if not console.is_terminal and 10 * done // total > 10 * (done - count) // total:
                console.print(f"{what}: {done} of {total}, {time.perf_counter() - began:.0f} s")

        yield advance


def answers(reference: LLM, asked: list[list[int]], on_answer: Callable[[int], None]) -> list[Asked]:
    """Each prompt with what the reference says to it, one at a time."""
    found = []
    for prompt in asked:
        params = SamplingParams(max_tokens=LONG if len(prompt) <= SHORT else MOST, ignore_eos=True)
        found.append((prompt, reference.generate([prompt], params)[0].token_ids))
        on_answer(1)
    return found


def memory(device: str) -> dict[str, int]:
    """Bytes in use now, of the card's allocator or of this process."""
    if device.startswith("cuda"):
        return {"allocated": torch.cuda.memory_allocated(device), "reserved": torch.cuda.memory_reserved(device)}
    return {"resident": resident()}


class Load:
    """Random requests over prompts whose answers are known, and what was wrong with theirs."""

    def __init__(self, llm: LLM, asked: list[Asked], dice: random.Random, device: str):
        self.engine, self.asked, self.dice, self.device = llm.engine, asked, dice, device
        self.expected: dict[Request, list[int]] = {}
        self.different: list[tuple[list[int], list[int], list[int]]] = []  # prompt, found, expected
        self.agreed = self.aborted = self.tokens = 0
        self.first: dict[str, int] = {}  # most memory in use between steps, of the first requests and of the others
        self.later: dict[str, int] = {}

    def submit(self) -> Request:
        prompt, answer = self.dice.choice(self.asked)
        start = self.dice.randrange(len(answer)) if self.dice.random() < 0.2 else 0  # goes on where an answer was
        most = len(answer) - start
        count = self.dice.randint(1, most if self.dice.random() < 0.2 else min(MOST, most))
        request = self.engine.make_request(prompt + answer[:start], SamplingParams(max_tokens=count, ignore_eos=True))
        self.expected[request] = answer[start : start + count]
        self.engine.submit(request)
        return request

    def run(self, requests: int, waiting: int, on_ended: Callable[[int], None]) -> None:
        """All requests to their end. IntegrityError as soon as the pools' books are wrong."""
        ended, warm = 0, min(WARM, requests // 2)
        for group in traffic(self.engine, [], self.submit, self.dice, requests, aborts=ABORTS, waiting=waiting):
            for request in group:
                self.take(request)
            ended += len(group)
            most = self.first if ended <= warm else self.later
            for name, used in memory(self.device).items():
                most[name] = max(used, most.get(name, 0))
            on_ended(len(group))

    def take(self, request: Request) -> None:
        expected = self.expected.pop(request)
        aborted = request.finish_reason == "abort"
        expected = expected[: len(request.output)] if aborted else expected
        self.aborted += aborted
        self.tokens += len(request.output)
        if request.output == expected:
            self.agreed += 1
        else:
            self.different.append((request.prompt, request.output, expected))

    def judged(self, reference: LLM) -> Tally:
        """Which of the answers that differ are ties."""
        tally = Tally(self.agreed)
        for prompt, found, expected in self.different:
            tally.add(judge_by(reference, prompt, found, expected), f"prompt of {len(prompt)} tokens")
        return tally

    def failures(self) -> list[str]:
        """What is not whole or has grown, now that everything has ended; the prefix cache is emptied."""
        found, engine = [], self.engine
        engine.check()
        counters = engine.counters
        for kind, used in (("pages", counters.pages_used), ("window pages", counters.window_pages_used)):
            if used:
                found.append(f"{used} {kind} are neither free nor in the prefix cache")
        engine.forget_prefixes()
        engine.check()
        left = engine.counters.pages_cached + engine.counters.window_pages_cached
        if left:
            found.append(f"the prefix cache kept {left} pages that nobody uses")
        for name, later in self.later.items():
            if later > self.first[name] + GROWTH[name]:
                found.append(f"{name} memory grew from {self.first[name] / 1e6:.1f} to {later / 1e6:.1f} MB")
        return found


def options(arguments: list[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m tools.load_test", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint folder or hub id (default: the embedded checkpoint)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--eager", action="store_true", help="launch by launch instead of CUDA graphs")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64, help="requests that run together (64)")
    parser.add_argument("--prompts", type=int, default=300, help="different prompts, each answered alone once (300)")
    parser.add_argument("--speculative-tokens", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = options(arguments)
    dice, console = random.Random(args.seed), Console(stderr=True)
    reference = LLM(
        args.model,
        device=args.device,
        progress=False,
        max_running=1,
        num_pages=8,
        prefix_caching=False,
    )
    llm = LLM(
        args.model, device=args.device, progress=False, captured=not args.eager, max_running=args.concurrency,
        num_pages=4 + 3 * args.concurrency // 2, chunk_tokens=max(512, 4 * args.concurrency),
        speculative_tokens=args.speculative_tokens,
    )  # fmt: skip
    with told("answers alone", args.prompts, console) as advance:
        asked = answers(reference, prompts(llm.encode, dice, args.prompts), advance)
    load, began = Load(llm, asked, dice, args.device), time.perf_counter()
    with told("under load", args.requests, console) as advance:
        load.run(args.requests, 2 * args.concurrency, advance)
    seconds = time.perf_counter() - began
    tally, failures = load.judged(reference), load.failures()
    for text in tally.ties + tally.wrong + failures:
        print(text, file=sys.stderr)
    print(json.dumps(record(args, load, tally, seconds)))
    return 1 if tally.wrong or failures else 0


def record(args: argparse.Namespace, load: Load, tally: Tally, seconds: float) -> dict[str, Any]:
    counters = load.engine.counters
    return {
        "requests": args.requests, "aborted": load.aborted, "wrong": len(tally.wrong), "ties": len(tally.ties),
        "tokens": load.tokens, "seconds": round(seconds, 1), "memory": {"first": load.first, "later": load.later},
        "mode": "cpu" if args.device == "cpu" else "eager" if args.eager else "captured",
        "concurrency": args.concurrency, "speculative_tokens": args.speculative_tokens, "seed": args.seed,
        "prefix_hit_tokens": counters.prefix_hit_tokens, "preemptions": counters.preemptions,
        "drafted_tokens": counters.drafted_tokens, "accepted_tokens": counters.accepted_tokens,
        "gpu": torch.cuda.get_device_name() if args.device.startswith("cuda") else "none",
        **origin(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
