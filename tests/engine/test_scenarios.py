"""Thousands of requests of random lengths with aborts, shared prefixes and preemption: each says what it says alone.

The model is the fake whose next token hashes all tokens as read back through the caches.
"""

from __future__ import annotations

import random

import pytest

from fakes.hash_model import END, VOCAB, HashModel, HashState, answer
from wellhead.engine import memory
from wellhead.engine.core import Engine
from wellhead.engine.pages import IntegrityError
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scheduler import Counters, Work

SMALL = {"max_running": 6, "chunk_tokens": 300, "num_pages": 9, "window_pages": 7}


class Scenario:
    """Requests that arrive in bursts, begin alike, continue each other's texts, and are dropped at random."""

    def __init__(self, seed: int, *, long: float = 0.05, **options: object):
        self.long = long  # share of requests whose answers fill pages, so that others must be preempted
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

    def submit(self) -> None:
        prompt = self.prompt()[: self.longest]
        most = 600 if self.random.random() < self.long else self.random.choice((1, 3, 12, 50))
        params = SamplingParams(
            max_tokens=min(most, self.longest + 60 - len(prompt)), temperature=self.random.choice((0.0, 1.2)),
            seed=self.random.randrange(1000), ignore_eos=most > 50 or self.random.random() < 0.3,
        )  # fmt: skip
        request = self.engine.make_request(prompt, params)
        self.engine.submit(request)
        self.live.append(request)

    def run(self, requests: int, *, aborts: float = 0.03, waiting: int = 8) -> Counters:
        """All of them to their end, the pools checked in every step."""
        while requests or self.live:
            while requests and len(self.live) < waiting and self.random.random() < 0.7:
                self.submit()
                requests -= 1
            self.engine.step()
            if self.live and self.random.random() < aborts:
                self.engine.abort(self.random.choice(self.live))
            self.engine.check()
            self.done += [request for request in self.live if request.finish_reason]
            self.live = [request for request in self.live if not request.finish_reason]
        return self.engine.counters

    def wrong(self) -> list[Request]:
        """Requests whose answer is not what it is alone, or no beginning of it if they were aborted."""
        found = []
        for request in self.done:
            count = len(request.output) if request.finish_reason == "abort" else request.max_tokens
            if answer(request.prompt, request.params, count) != request.output:
                found.append(request)
        return found


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, SMALL),
        (2, SMALL | {"window_pages": 4}),
        (3, SMALL | {"chunk_tokens": 16, "max_running": 16}),
        (4, SMALL | {"chunk_tokens": 4096, "num_pages": 40, "window_pages": 20}),
        (5, SMALL | {"num_pages": 4, "window_pages": 2}),
        (6, SMALL | {"prefix_caching": False}),
        (7, SMALL | {"window_pages": 12, "long": 0.5}),
        (8, SMALL | {"window_pages": 12, "long": 0.5, "prefix_caching": False}),
    ],
)
def test_every_answer_is_what_it_is_alone_and_nothing_leaks(seed: int, options: dict) -> None:
    scenario = Scenario(seed, **options)
    requests, aborts = (60, 0.003) if "long" in options else (160, 0.03)
    counters = scenario.run(requests, aborts=aborts)
    assert not scenario.wrong()
    engine = scenario.engine
    assert counters.finished == requests and counters.pages_used == counters.window_pages_used == 0
    assert counters.pages_free + counters.pages_cached == options["num_pages"]
    if options.get("prefix_caching", True):
        assert counters.prefix_hit_tokens and counters.pages_cached
    if "long" in options:
        assert counters.preemptions > 3 and counters.recomputed_tokens > 3 * 256
    engine.forget_prefixes()
    engine.check()
    assert engine.counters.pages_free == options["num_pages"] and not engine.counters.window_pages_cached
    assert not engine._texts


@pytest.mark.slow
def test_thousands_of_requests_do_not_make_the_engine_grow() -> None:
    scenario = Scenario(11, **SMALL)
    scenario.run(300)

    def size() -> int:
        tree = scenario.engine._memory.prefix
        return sum(len(value) for value in vars(tree).values() if hasattr(value, "__len__"))

    before = size()
    scenario.run(1700)
    assert not scenario.wrong()
    assert size() <= before + 6 * SMALL["num_pages"] and size() <= 6 * SMALL["num_pages"]


def test_long_prompts_and_decodes_share_one_step() -> None:
    scenario = Scenario(8, **SMALL)
    runner, seen = scenario.engine._runner, []
    run = runner.run

    def spy(work: list[Work]) -> object:
        seen.append([(item.request.decoding, item.tokens) for item in work])
        return run(work)

    runner.run = spy  # type: ignore[assignment, method-assign]
    scenario.run(40, aborts=0)
    kinds = [[decoding for decoding, _ in step] for step in seen]
    assert any(True in step and False in step for step in kinds)
    assert all(step == sorted(step, reverse=True) for step in kinds), "decoding requests come first"
    assert max(sum(tokens for _, tokens in step) for step in seen) == SMALL["chunk_tokens"]


def _no_restore(state: HashState, window_page: int, slot: int) -> None:
    pass


def _same_key(previous: bytes, tokens: list[int]) -> bytes:
    return previous + b"."


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (HashState, "restore_tail", _no_restore),
        (HashState, "save_tail", _no_restore),
        (memory, "chain", _same_key),
        (memory.Memory, "__init__", None),
    ],
    ids=["no tail restored", "no tail saved", "pages matched whatever they hold", "window freed too early"],
)
def test_a_fault_changes_an_answer(monkeypatch: pytest.MonkeyPatch, where: object, name: str, fault: object) -> None:
    """The scenario sees what it is there to see."""
    if fault is None:
        build = memory.Memory.__init__
        fault = lambda self, *args, **kw: build(self, *args, **(kw | {"window": 64}))  # noqa: E731
    monkeypatch.setattr(where, name, fault)
    scenario = Scenario(1, **SMALL)
    with pytest.raises(AssertionError):
        scenario.run(60)
        assert not scenario.wrong()


def test_the_integrity_check_names_the_page() -> None:
    scenario = Scenario(9, **SMALL)
    for _ in range(4):
        scenario.submit()
    scenario.engine.step()
    pools = scenario.engine._memory
    (lost,) = pools.pages.allocate(1)
    with pytest.raises(IntegrityError, match=rf"pages {lost} has 0 holders, the books say 1"):
        scenario.engine.check()
    pools.pages.release([lost])
    running = scenario.live[0]
    page = running.window_pages[running.behind]
    pools.window_pages.share(page)
    with pytest.raises(IntegrityError, match=rf"window pages {page} has \d holders, the books say \d"):
        scenario.engine.check()
    pools.window_pages.release([page])
    pools.slots.allocate(1)
    with pytest.raises(IntegrityError, match=r"state slots \d has 0 holders, the books say 1"):
        scenario.engine.check()


def test_a_leak_is_found_when_the_engine_goes_idle() -> None:
    scenario = Scenario(10, **SMALL)
    scenario.engine._memory.pages.allocate(1)
    scenario.submit()
    with pytest.raises(IntegrityError, match="pages 0"):
        while scenario.engine.busy:
            scenario.engine.step()
