"""Thousands of requests of random lengths with aborts, shared prefixes and preemption: each says what it says alone.

The model is the fake whose next token hashes all tokens as read back through the caches.
"""

from __future__ import annotations

import pytest

from fakes.hash_model import HashState
from fakes.scenario import SMALL, Scenario
from wellhead.engine import memory
from wellhead.engine.pages import IntegrityError
from wellhead.engine.scheduler import Work


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
    launch = runner.launch

    def spy(work: list[Work]) -> object:
        seen.append([(item.request.decoding, item.tokens) for item in work])
        return launch(work)

    runner.launch = spy  # type: ignore[assignment, method-assign]
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
    scenario.live = [scenario.submit() for _ in range(4)]
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
