"""Steps with drafts that are launched before it is known how many of the last ones were right."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from engine.test_overlap import launches
from fakes.following import FollowingRunner, PlaceSampler, drawn
from fakes.hash_model import END, next_logits
from fakes.scenario import SMALL, Scenario
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams


@pytest.fixture(autouse=True)
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FollowingRunner, "sampler", PlaceSampler())


def scenario(seed: int, drafts: int, **options: Any) -> Scenario:
    made = partial(FollowingRunner, tokens=drafts, wrong=options.pop("wrong", 0.3))
    return Scenario(seed, make_runner=made, speculative_tokens=drafts, **(SMALL | options))


def alone(request: Request, count: int) -> list[int]:
    """What a request says when it is alone, from the tokens themselves."""
    tokens, output = list(request.prompt), list[int]()
    while len(output) < count and (not output or output[-1] != END or request.params.ignore_eos):
        output.append(drawn(next_logits(tokens), request, len(output)))
        tokens.append(output[-1])
    return output


def wrong(found: Scenario) -> list[Request]:
    return [
        request for request in found.done
        if request.output
        != alone(request, len(request.output) if request.finish_reason == "abort" else request.max_tokens)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "drafts", "options"),
    [
        (1, 3, {}),
        (2, 1, {"window_pages": 4}),
        (3, 2, {"chunk_tokens": 48, "max_running": 16}),
        (4, 3, {"max_running": 2, "temperatures": (0.0,)}),
        (5, 3, {"window_pages": 12, "long": 0.5}),
        (6, 1, {"num_pages": 4, "window_pages": 2}),
        (7, 3, {"prefix_caching": False, "wrong": 0.0, "max_running": 1}),
        (8, 2, {"temperatures": (1.2,), "wrong": 1.0}),
    ],
)
def test_every_answer_is_what_it_is_alone(seed: int, drafts: int, options: dict[str, Any]) -> None:
    found = scenario(seed, drafts, **options)
    seen = launches(found.engine)
    counters = found.run(60 if "long" in options else 120, aborts=0.003 if "long" in options else 0.03)
    assert not wrong(found)
    ahead = [item for work in seen for item in work if item.ahead]
    assert len(ahead) > 50 and all(item.drafts == drafts for item in ahead)
    saved = any(item.save >= 0 for item in ahead)
    assert saved or "long" not in options
    assert not saved or options.get("prefix_caching", True)
    assert counters.accepted_tokens > 100 or options.get("wrong") == 1.0
    assert counters.finished == len(found.done) and counters.pages_used == counters.window_pages_used == 0
    found.engine.forget_prefixes()
    found.engine.check()


def test_the_wrong_row_changes_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenario sees what it is there to see."""
    follow = FollowingRunner.follow

    def mixed(self: FollowingRunner, *given: Any) -> torch.Tensor:
        guesses = follow(self, *given)
        tokens = [ids for ids, _ in self._next.values()]
        self._next = {
            row: (ids, place) for (row, (_, place)), ids in zip(self._next.items(), tokens[::-1], strict=True)
        }
        return guesses

    monkeypatch.setattr(FollowingRunner, "follow", mixed)
    found = scenario(1, 3)
    found.run(40)
    assert wrong(found)


def test_nothing_but_the_prompt_and_the_last_token_is_waited_for() -> None:
    """One request over a page's end, every draft right."""
    found = scenario(1, 3, wrong=0.0)
    engine = found.engine
    request = engine.make_request([5] * 200, SamplingParams(max_tokens=100, ignore_eos=True))
    engine.submit(request)
    seen = launches(engine)
    while engine.busy:
        engine.step()
    assert request.output == alone(request, 100)
    assert [item.ahead for work in seen for item in work][:3] == [0, 0, 1] and len(seen) < 40
    assert sum(not item.ahead for work in seen for item in work) == 2
    assert request.drafted - request.accepted <= 2 and request.accepted > 65


@pytest.mark.parametrize("reason", ["logprobs", "adjusted"])
def test_who_needs_the_host_is_waited_for(reason: str) -> None:
    """Beside one who does not; afterwards that one goes on ahead."""
    found = scenario(1, 2)
    engine = found.engine
    given = SamplingParams(max_tokens=9, ignore_eos=True, logprobs=2 if reason == "logprobs" else 0)
    needing = engine.make_request([7, 8], given)
    if reason == "adjusted":
        needing.adjust = lambda logits, _output: logits
    other = engine.make_request([5, 6], SamplingParams(max_tokens=60, ignore_eos=True, temperature=1.0, seed=3))
    seen = launches(engine)
    for request in (needing, other):
        engine.submit(request)
    while engine.busy:
        both = needing.finish_reason is None
        before = len(seen)
        engine.step()
        assert not both or not any(item.ahead for work in seen[before:] for item in work)
    assert any(item.ahead for work in seen for item in work)
    assert (needing.output, other.output) == (alone(needing, 9), alone(other, 60))


def test_scoring_between_two_steps_changes_neither() -> None:
    found = scenario(3, 3)
    engine = found.engine
    request = engine.make_request([5, 6, 7], SamplingParams(max_tokens=40, ignore_eos=True))
    engine.submit(request)
    for _ in range(3):
        engine.step()
    expected = engine.logits([4, 5, 6], chunks=[2, 1])
    engine.step()
    assert engine.logits([4, 5, 6], chunks=[2, 1]).equal(expected)
    while engine.busy:
        engine.step()
    assert request.output == alone(request, 40)
