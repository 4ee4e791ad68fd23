"""Steps that are launched before the tokens of the one in front are read: every answer is what it is alone."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.hash_model import answer
from fakes.host_sampler import HostSampler
from fakes.scenario import SMALL, Scenario
from wellhead.engine.core import Engine
from wellhead.engine.request import Request
from wellhead.engine.runner import Runner
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scheduler import Work


@pytest.fixture(autouse=True)
def overlapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner on the CPU gains nothing by it, but goes the same way."""
    monkeypatch.setattr(Runner, "overlaps", True)
    monkeypatch.setattr(Runner, "sampler", HostSampler())


def launches(engine: Engine) -> list[list[Work]]:
    """The work of every launch from now on."""
    runner, seen = engine._runner, []  # type: ignore[var-annotated]
    launch = runner.launch

    def spy(work: list[Work]) -> Any:
        seen.append(list(work))
        return launch(work)

    runner.launch = spy  # type: ignore[assignment, method-assign]
    return seen


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, SMALL),
        (2, SMALL | {"window_pages": 4}),
        (3, SMALL | {"chunk_tokens": 16, "max_running": 16}),
        (4, SMALL | {"max_running": 2}),
        (5, SMALL | {"num_pages": 4, "window_pages": 2}),
        (6, SMALL | {"prefix_caching": False, "temperatures": (0.0,)}),
        (7, SMALL | {"window_pages": 12, "long": 0.5}),
        (8, SMALL | {"window_pages": 12, "long": 0.5, "prefix_caching": False}),
    ],
)
def test_every_answer_is_what_it_is_alone(seed: int, options: dict[str, Any]) -> None:
    scenario = Scenario(seed, **options)
    seen = launches(scenario.engine)
    requests, aborts = (60, 0.003) if "long" in options else (160, 0.03)
    counters = scenario.run(requests, aborts=aborts)
    assert not scenario.wrong()
    assert sum(work[0].ahead > 0 for work in seen if work) > 100
    assert counters.finished == requests and counters.pages_used == counters.window_pages_used == 0
    assert counters.prefix_hit_tokens or not options.get("prefix_caching", True)
    if "long" in options:
        assert counters.preemptions > 3 and any(item.save >= 0 for work in seen for item in work if item.ahead) == (
            options.get("prefix_caching", True)
        )
    scenario.engine.forget_prefixes()
    scenario.engine.check()


def test_the_wrong_row_changes_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenario sees what it is there to see."""
    compute = Runner.compute
    monkeypatch.setattr(Runner, "compute", lambda self, chunks, rows=(): compute(self, chunks, rows[::-1]))
    scenario = Scenario(1, **SMALL)
    scenario.run(60)
    assert scenario.wrong()


def started(count: int, **params: Any) -> tuple[Engine, list[Request]]:
    scenario = Scenario(3, **SMALL)
    engine = scenario.engine
    given = SamplingParams(max_tokens=12, ignore_eos=True, **params)
    requests = [engine.make_request([5, 6, 7 + number], given) for number in range(count)]
    for request in requests:
        engine.submit(request)
    return engine, requests


def finish(engine: Engine, requests: list[Request]) -> None:
    while engine.busy:
        engine.step()
    engine.check()
    for request in requests:
        assert request.output == answer(request.prompt, request.params, 12)


def test_a_step_says_what_it_says_and_the_next_one_is_under_way() -> None:
    engine, requests = started(2)
    seen = launches(engine)
    assert [len(delta.token_ids) for _, delta in engine.step()] == [1, 1]
    assert [[item.ahead for item in work] for work in seen] == [[0, 0], [3, 3]]
    assert [request.computed for request in requests] == [3, 3]
    engine.step()
    assert [[item.ahead for item in work] for work in seen[2:]] == [[1, 1]]
    finish(engine, requests)
    assert len(seen) == 12, "nobody is computed beyond the longest answer"


@pytest.mark.parametrize("reason", ["logprobs", "adjusted", "waiting"])
def test_who_needs_the_host_is_waited_for(reason: str) -> None:
    engine, requests = started(1, logprobs=2 if reason == "logprobs" else 0)
    if reason == "adjusted":
        requests[0].adjust = lambda logits, _output: logits
    if reason == "waiting":
        requests += [engine.make_request([9] * 300, requests[0].params)]
        engine.submit(requests[1])
    seen = launches(engine)
    engine.step()
    assert [[item.ahead for item in work] for work in seen] == [[0] * len(requests)]
    finish(engine, requests)


def test_scoring_between_two_steps_changes_neither() -> None:
    engine, requests = started(2)
    engine.step()
    expected = engine.logits([4, 5, 6], chunks=[2, 1])
    engine.step()
    assert engine.logits([4, 5, 6], chunks=[2, 1]).equal(expected)
    finish(engine, requests)


def test_who_is_aborted_while_it_is_computed_leaves_the_others_alone() -> None:
    engine, requests = started(3)
    engine.step()
    engine.abort(requests[1])
    gained = engine.step()
    assert [request for request, _ in gained] == [requests[0], requests[2]]
    finish(engine, [requests[0], requests[2]])
    assert requests[1].finish_reason == "abort" and len(requests[1].output) == 1


def test_who_waits_behind_one_that_is_aborted_is_let_in() -> None:
    """The head of the queue has no room, so steps overlap; when it is gone the next one need not wait for an end."""
    engine, requests = started(1)
    given = requests[0].params
    large, small = engine.make_request([4] * 2200, given), engine.make_request([8, 9], given)
    for request in (large, small):
        engine.submit(request)
    seen = launches(engine)
    for _ in range(3):
        engine.step()
    assert [work[0].ahead for work in seen] == [0, 3, 1, 1] and not small.output
    engine.abort(large)
    engine.step()
    engine.step()
    assert small.output and requests[0].finish_reason is None
    finish(engine, [*requests, small])


def test_a_step_that_nobody_wants_any_more_is_left() -> None:
    engine, requests = started(2)
    engine.step()
    for request in requests:
        engine.abort(request)
    assert not engine.busy
    late = engine.make_request([8, 8], SamplingParams(max_tokens=12, ignore_eos=True))
    engine.submit(late)
    assert [request for request, _ in engine.step()] == [late]
    finish(engine, [late])


@pytest.mark.parametrize("which", [1, 2])
def test_a_failure_under_way_ends_the_step_and_no_other(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """Of the step itself, and of the one launched behind it."""
    engine, requests = started(2)
    engine.step()
    compute, left = Runner.compute, [None] * which

    def fail(self: Runner, *given: Any) -> Any:
        left.pop()
        if not left:
            raise ArithmeticError("no such number")
        return compute(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "compute", fail)
        with pytest.raises(ArithmeticError, match="no such number"):
            for _ in range(which):
                engine.step()
    assert [request.finish_reason for request in requests] == ["error"] * 2
    again = engine.make_request([5, 6, 7], SamplingParams(max_tokens=12, ignore_eos=True))
    engine.submit(again)
    finish(engine, [again])


def test_overlap_can_be_left_out() -> None:
    scenario = Scenario(6, overlap=False, **SMALL)
    seen = launches(scenario.engine)
    scenario.run(30)
    assert not scenario.wrong() and not any(item.ahead for work in seen for item in work)
