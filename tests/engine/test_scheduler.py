"""Who runs when: budgets, order, memory; no model involved."""

from __future__ import annotations

import pytest
import torch

from wellhead.engine.memory import Memory
from wellhead.engine.pages import IntegrityError, OutOfPages, PageAllocator
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scheduler import Scheduler, Work


def request(prompt: int, max_tokens: int = 10, token: int = 7) -> Request:
    return Request([token] * prompt, SamplingParams(), max_tokens, torch.Generator())


def scheduler(pages: int = 10, slots: int = 3, budget: int = 100, **options: int) -> Scheduler:
    return Scheduler(Memory(pages, slots, **options), budget)  # type: ignore[arg-type]


def step(scheduler: Scheduler) -> list[Work]:
    """One step with a model that always answers 9."""
    work = scheduler.schedule()
    sampled = [item.request for item in work if item.samples]
    scheduler.advance(work)
    for each in sampled:
        each.output.append(9)
    scheduler.check()
    return work


def run(scheduler: Scheduler) -> list[tuple[Request, int]]:
    return [(item.request, item.tokens) for item in step(scheduler)]


def test_prompts_fill_the_budget_in_order_and_decodes_come_first() -> None:
    s = scheduler()
    a, b, c = request(30), request(150), request(5)
    for r in (a, b, c):
        s.add(r)
    assert run(s) == [(a, 30), (b, 70)]
    assert run(s) == [(a, 1), (b, 80), (c, 5)]
    assert run(s) == [(a, 1), (b, 1), (c, 1)]
    assert a.output == [9] * 3 and a.computed == 32 and a.pending == 1


def test_the_head_of_the_queue_waits_for_pages_and_is_not_overtaken() -> None:
    s = scheduler(pages=3, budget=1000)
    large, larger, small = request(500, token=1), request(400, token=2), request(5)
    for r in (large, larger, small):
        s.add(r)
    run(s)
    run(s)
    assert s.running == [large] and s.memory.pages.free == 1
    s.finish(large, "stop")
    run(s)
    assert s.running == [larger, small]
    run(s)
    assert s.memory.available == 0
    assert set(larger.pages).isdisjoint(small.pages) and larger.state_slot != small.state_slot


def test_pages_are_given_as_tokens_come() -> None:
    s = scheduler(budget=300)
    s.add(request(250, 600))
    run(s)
    assert s.memory.pages.free == 9
    for _ in range(7):
        run(s)
    assert s.running[0].computed == 257 and s.memory.pages.free == 8


def test_a_decode_without_a_page_preempts_the_latest_which_keeps_its_place() -> None:
    """Two requests that outgrow their page on a pool of three: the later waits at the head, and nothing is lost."""
    s = scheduler(pages=3, budget=1000)
    first, second, third = request(250, 20, token=1), request(250, 20, token=2), request(3)
    for r in (first, second, third):
        s.add(r)
    while not s.counters.preemptions:
        run(s)
    assert s.running == [first] and list(s.waiting) == [second, third]
    assert second.output == [9] * 7 and (second.computed, second.pages, second.state_slot) == (0, [], None)
    assert s.counters.recomputed_tokens == 256
    for _ in range(3):
        run(s)
    assert s.running == [first]  # two pages wanted, one left
    s.finish(first, "stop")
    restored = step(s)
    assert [(item.request, item.tokens) for item in restored] == [(second, 1), (third, 3)]
    assert restored[0].restore >= 0 and second.output == [9] * 8 and s.counters.prefix_hit_tokens == 256


def test_the_earliest_is_never_preempted() -> None:
    s = scheduler(pages=4, slots=4, budget=1000)
    requests = [request(200, 700, token=i) for i in range(4)]
    for r in requests:
        s.add(r)
    for _ in range(750):
        run(s)
        assert not s.running or requests[0].finish_reason or s.running[0] is requests[0]
        if len(requests[0].output) == 700:
            s.finish(requests[0], "length")
    assert requests[0].finish_reason and s.counters.preemptions


def test_window_pages_are_given_back_behind_the_window() -> None:
    s = scheduler(budget=200)
    r = request(900)
    s.add(r)
    for _ in range(3):
        run(s)
    # token 600 still reads 473 .. 599
    assert r.computed == 600 and [page >= 0 for page in r.window_pages] == [False, True, True]
    for _ in range(10):
        run(s)
    assert [page >= 0 for page in r.window_pages] == [False] * 3 + [True]
    assert len(r.pages) == 4
    # the tails at 600 -> 768 and no other boundary: chunks of 200 end elsewhere
    assert s.counters.window_pages_used == 1 and s.counters.window_pages_cached == 1


def test_chunks_end_at_the_last_page_boundary_and_where_prompts_part() -> None:
    s = scheduler(budget=2000, pages=20)
    first, second, third = request(1000), request(1000), request(1000)
    second.prompt[600:] = [8] * 400
    third.prompt[700:] = [3] * 300
    s.add(first)
    assert [item.tokens for item in (*step(s), *step(s))] == [768, 232]
    s.add(second)  # nodes for 0 .. 767, a tail at 768 only: no use
    assert [item.tokens for item in (step(s)[1], step(s)[1], step(s)[1])] == [512, 256, 232]
    s.add(third)
    (work,) = [item for item in step(s) if item.request is third]
    assert work.restore >= 0 and work.tokens == 256 and third.computed == 768
    assert third.pages[:2] == first.pages[:2] == second.pages[:2] and third.pages[2] not in first.pages
    assert s.counters.prefix_hit_tokens == 512


def test_requests_that_compute_the_same_pages_side_by_side_end_up_sharing_them() -> None:
    s = scheduler(budget=2000, pages=20)
    a, b = request(600), request(600)
    s.add(a)
    s.add(b)
    run(s)
    assert a.pages == b.pages and len(a.pages) == 2 and s.counters.pages_used == 2
    run(s)
    assert a.pages[2] != b.pages[2]


def test_the_least_recently_used_prefix_goes_first() -> None:
    s = scheduler(budget=2000, pages=6)

    def serve(token: int) -> int:
        before = s.counters.prefix_hit_tokens
        r = request(300, token=token)
        s.add(r)
        while not r.output:
            run(s)
        s.finish(r, "stop")
        s.check()
        return s.counters.prefix_hit_tokens - before

    assert [serve(token) for token in (1, 2, 3, 4, 1)] == [0, 0, 0, 0, 256]
    assert s.counters.pages_cached == 4 and s.counters.pages_free == 2
    assert [serve(token) for token in (5, 6, 1)] == [0, 0, 256]
    assert [serve(token) for token in (3, 2)] == [256, 0]
    s.memory.prefix.clear()
    s.check()
    assert s.counters.pages_free == 6 == s.counters.window_pages_free


def test_a_long_chain_is_forgotten_at_once_when_its_only_tail_goes() -> None:
    s = scheduler(pages=3000, budget=1 << 20, slots=1)
    r = request(2000 * 256 + 1)
    s.add(r)
    run(s)
    run(s)
    s.finish(r, "stop")
    s.check()
    assert s.counters.pages_cached == 2000 and s.counters.window_pages_cached == 1
    s.memory.prefix.evict_tail()
    s.check()
    assert s.counters.pages_free == 3000 == s.counters.window_pages_free


def test_slots_bound_how_many_run() -> None:
    s = scheduler(slots=2)
    for _ in range(4):
        s.add(request(5))
    assert len(run(s)) == 2 and len(s.waiting) == 2


def test_finishing_frees_once_wherever_the_request_is() -> None:
    s = scheduler()
    a, b = request(5), request(5)
    s.add(a)
    run(s)
    s.add(b)
    s.finish(b, "abort")
    s.finish(a, "abort")
    s.finish(a, "stop")
    s.check()
    assert not s.busy and s.memory.pages.free == 10 and s.memory.slots.free == 3
    assert a.finish_reason == "abort" and a.pages == [] and a.state_slot is None


def test_the_last_token_is_never_fed_back() -> None:
    assert request(250, 7).cached_tokens == 256


def test_next_tokens_span_prompt_and_output() -> None:
    r = request(3)
    r.output = [1, 2]
    r.computed = 2
    assert r.next_tokens(2) == [7, 1] and r.next_tokens(1) == [7] and r.tokens(0, 5) == [7, 7, 7, 1, 2]
    r.computed = 4
    assert r.next_tokens(1) == [2]


def test_allocator() -> None:
    pool = PageAllocator(3)
    taken = pool.allocate(2)
    assert taken == [0, 1]
    with pytest.raises(OutOfPages, match="2 pages wanted, 1 of 3 are free"):
        pool.allocate(2)
    pool.release([1])
    with pytest.raises(ValueError, match="1 is released but not owned"):
        pool.release([1])
    with pytest.raises(ValueError, match="-1 is released but not owned"):
        pool.release([-1])
    with pytest.raises(ValueError, match="1 is shared but not owned"):
        pool.share(1)
    pool.share(0)
    pool.release([0])
    assert pool.holders(0) == 1 and pool.free == 2
    assert sorted(pool.allocate(2)) == [1, 2] and pool.free == 0
    pool.check([2, 0, 1])
    with pytest.raises(IntegrityError, match="pages 2 has 2 holders, the books say 1"):
        pool.check([0, 1, 2, 2])
    with pytest.raises(IntegrityError, match="pages 3 is held, but the pool has 0 to 2"):
        pool.check([0, 1, 2, 3])


def test_pools_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_tokens is 2, expected at least 3"):
        scheduler(budget=2)
    with pytest.raises(ValueError, match="window_pages is 1, expected at least 2"):
        scheduler(window_pages=1)
    with pytest.raises(NotImplementedError, match="a window of 300 tokens"):
        scheduler(window=300)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True), ("temperature", -0.1),
        ("temperature", float("nan")), ("temperature", "hot"), ("temperature", 10**400),
        ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1),
        ("seed", -1), ("seed", "x"), ("stop", ("a", "")), ("stop", 3), ("ignore_eos", 1), ("logprobs", -2),
    ],
)  # fmt: skip
def test_bad_sampling_params_name_field_value_and_expectation(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is .*expected"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_a_single_stop_string_is_taken_whole() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
