"""Random traffic for an engine over the hash model: shared prefixes, continued texts, aborts, preemption."""

from __future__ import annotations

import random

from fakes.hash_model import END, VOCAB, HashModel, answer
from wellhead.engine.core import Engine
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scheduler import Counters
from wellhead.testing.traffic import traffic

SMALL = {"max_running": 6, "chunk_tokens": 300, "num_pages": 9, "window_pages": 7}


class Scenario:
    """Requests that arrive in bursts, begin alike, continue each other's texts, and are dropped at random."""

    def __init__(
        self, seed: int, *, long: float = 0.05, temperatures: tuple[float, ...] = (0.0, 1.2), **options: object
    ):
        self.long = long  # share of requests whose answers fill pages, so that others must be preempted
        self.temperatures = temperatures
        self.random = random.Random(seed)
        self.engine = Engine(HashModel(), None, frozenset([END]), **options)  # type: ignore[arg-type]
        self.longest = min(1100, 256 * int(options["num_pages"]) - 60)  # type: ignore[call-overload]
        self.bases = [self.draw(length) for length in (90, 256, 300, 515, 700)]
        self.live: list[Request] = []
        self.done: list[Request] = []

    def draw(self, count: int) -> list[int]:
        return [self.random.randrange(2, VOCAB) for _ in range(count)]

    def prompt(self) -> list[int]:
        kind = self.random.random()
        if self.long > 0.2:
            return self.random.choice(self.bases[:2])[:250] + self.draw(5)
        if kind < 0.2 or not self.done:
            return self.draw(self.random.choice((1, 4, 100, 255, 256, 257, 513, 900)))[: self.longest]
        if kind < 0.4:
            old = self.random.choice(self.done[-20:])
            return (old.prompt + old.output + self.draw(self.random.randrange(1, 40)))[: self.longest]
        base = self.random.choice(self.bases)
        return base[: self.random.randrange(1, len(base) + 1) if kind < 0.6 else None] + self.draw(
            self.random.choice((0, 1, 50, 300))
        )

    def submit(self) -> Request:
        prompt = self.prompt()[: self.longest]
        most = 600 if self.random.random() < self.long else self.random.choice((1, 3, 12, 50))
        params = SamplingParams(
            max_tokens=min(most, self.longest + 60 - len(prompt)), temperature=self.random.choice(self.temperatures),
            seed=self.random.randrange(1000), ignore_eos=most > 50 or self.random.random() < 0.3,
        )  # fmt: skip
        request = self.engine.make_request(prompt, params)
        self.engine.submit(request)
        return request

    def run(self, requests: int, *, aborts: float = 0.03, waiting: int = 8) -> Counters:
        """All of them to their end, the pools checked in every step."""
        arriving = traffic(
            self.engine, self.live, self.submit, self.random, requests, aborts=aborts, waiting=waiting
        )
        for ended in arriving:
            self.done += ended
        return self.engine.counters

    def wrong(self) -> list[Request]:
        """Requests whose answer is not what it is alone, or no beginning of it if they were aborted."""
        found = []
        for request in self.done:
            count = len(request.output) if request.finish_reason == "abort" else request.max_tokens
            if answer(request.prompt, request.params, count) != request.output:
                found.append(request)
        return found
