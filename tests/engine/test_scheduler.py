"""Who runs when: budgets, order, memory; no model involved."""

from __future__ import annotations

import pytest
import torch

from wellhead.engine.pages import OutOfPages, PageAllocator
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scheduler import Scheduler


def request(prompt: int, max_tokens: int = 10) -> Request:
    return Request([7] * prompt, SamplingParams(), max_tokens, torch.Generator())


def scheduler(pages: int = 10, slots: int = 3, budget: int = 100) -> Scheduler:
    return Scheduler(PageAllocator(pages), PageAllocator(slots, "state slots"), budget)


def run(scheduler: Scheduler) -> list[tuple[Request, int]]:
    """One step with a model that always answers 9."""
    work = scheduler.schedule()
    done = [(item.request, item.tokens) for item in work]
    for item in work:
        samples = item.samples
        item.request.computed += item.tokens
        if samples:
            item.request.output.append(9)
    return done


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
    large, larger, small = request(500), request(400), request(5)
    for r in (large, larger, small):
        s.add(r)
    run(s)
    assert s.running == [large] and s.pages.free == 1
    s.finish(large, "stop")
    run(s)
    assert s.running == [larger, small] and s.pages.free == 0
    assert set(larger.pages).isdisjoint(small.pages) and larger.state_slot != small.state_slot


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
    assert not s.busy and s.pages.free == 10 and s.slots.free == 3
    assert a.finish_reason == "abort" and a.pages == [] and a.state_slot is None


def test_pages_cover_the_longest_run() -> None:
    # the last token is sampled but never fed back
    assert request(250, 7).cached_tokens == 256
    s = scheduler()
    s.add(request(250, 7))
    run(s)
    assert s.pages.free == 9


def test_next_tokens_span_prompt_and_output() -> None:
    r = request(3)
    r.output = [1, 2]
    r.computed = 2
    assert r.next_tokens(2) == [7, 1]
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
    assert sorted(pool.allocate(2)) == [1, 2] and pool.free == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True), ("temperature", -0.1),
        ("temperature", float("nan")), ("temperature", "hot"), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1),
        ("seed", -1), ("seed", "x"), ("stop", ("a", "")), ("stop", 3), ("ignore_eos", 1), ("logprobs", -2),
    ],
)  # fmt: skip
def test_bad_sampling_params_name_field_value_and_expectation(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is .*expected"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_a_single_stop_string_is_taken_whole() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
