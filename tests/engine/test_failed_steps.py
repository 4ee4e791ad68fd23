"""A step that fails, or that Ctrl-C falls into, costs the requests it must and changes no other answer."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from wellhead.engine.llm import LLM
from wellhead.engine.sampling_params import SamplingParams

SAMPLED = SamplingParams(max_tokens=8, temperature=1.0, seed=5, ignore_eos=True, logprobs=1)


@pytest.fixture(autouse=True)
def nothing_left(llm: LLM):  # type: ignore[no-untyped-def]
    yield
    llm.engine.check()
    assert llm.engine.free_pages == 6 and not llm.engine.busy
    llm.engine.forget_prefixes()


def once_behind(monkeypatch: pytest.MonkeyPatch, llm: LLM, event: Callable[[], object]) -> None:
    """`event` happens once, behind the next step's choice of tokens."""
    runner = llm.engine._runner
    finish, left = runner.finish, [event]

    def wrapped(launched):  # type: ignore[no-untyped-def]
        found = finish(launched)
        if left:
            left.pop()()
        return found

    monkeypatch.setattr(runner, "finish", wrapped)


def test_ctrl_c_ends_one_answer_and_leaves_the_other_as_it_was(monkeypatch: pytest.MonkeyPatch, llm: LLM) -> None:
    (expected,) = llm.generate([[9, 8, 7]], SAMPLED)
    first, second = llm.stream([5, 6, 7], SAMPLED), llm.stream([9, 8, 7], SAMPLED)
    tokens = list(next(second).token_ids)
    once_behind(monkeypatch, llm, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        next(first)
    tokens += [token for delta in second for token in delta.token_ids]
    assert tokens == expected.token_ids


@pytest.mark.parametrize("ignored", [True, False])
def test_who_answers_ctrl_c_himself_is_asked_behind_the_step(
    monkeypatch: pytest.MonkeyPatch, llm: LLM, ignored: bool
) -> None:
    (expected,) = llm.generate([[9, 8, 7]], SAMPLED)
    asked: list[bool] = []
    once_behind(monkeypatch, llm, lambda: (signal.raise_signal(signal.SIGINT), asked.append(True)))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else lambda *_: asked.append(False))
    try:
        assert llm.generate([[9, 8, 7]], SAMPLED) == [expected]
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == ([True] if ignored else [True, False])


def test_who_waits_is_not_in_a_failed_step(monkeypatch: pytest.MonkeyPatch, llm: LLM) -> None:
    """Four run and a fifth waits."""

    def fail() -> None:
        raise ArithmeticError("the step failed")

    (expected,) = llm.generate([[9, 8, 7]], SAMPLED)
    engine = llm.engine
    requests = [engine.make_request(prompt, SAMPLED) for prompt in [[5, 6, 7]] * 4 + [[9, 8, 7]]]
    for request in requests:
        engine.submit(request)
    engine.step()
    once_behind(monkeypatch, llm, fail)
    with pytest.raises(ArithmeticError, match="the step failed"):
        engine.step()
    assert [request.finish_reason for request in requests] == ["error"] * 4 + [None]
    while engine.busy:
        engine.step()
    assert requests[4].output == expected.token_ids and requests[4].logprobs == expected.logprobs


def test_tokens_that_cannot_be_told_end_their_step(monkeypatch: pytest.MonkeyPatch, llm: LLM) -> None:
    """Their caches are ahead of their output: whoever went on would skip a token."""
    collect, left = llm.engine._collect, [1, 1]

    def fail_second(*given):  # type: ignore[no-untyped-def]
        if left and (left.pop(), left)[1] == []:
            raise ArithmeticError("no text for it")
        return collect(*given)

    first, second = llm.stream([5, 6, 7], SAMPLED), llm.stream([9, 8, 7], SAMPLED)
    next(second)
    next(first)
    monkeypatch.setattr(llm.engine, "_collect", fail_second)
    for stream in (first, second):
        with pytest.raises(ArithmeticError, match="no text for it"):
            list(stream)


def test_a_failed_step_ends_every_request_in_it(monkeypatch: pytest.MonkeyPatch, llm: LLM) -> None:
    """What it drew and restored before it failed is lost, so none of them may go on as if nothing had been."""

    def fail() -> None:
        raise ArithmeticError("the step failed")

    first, second = llm.stream([5, 6, 7], SAMPLED), llm.stream([9, 8, 7], SAMPLED)
    next(second)
    once_behind(monkeypatch, llm, fail)
    for stream in (first, second):
        with pytest.raises(ArithmeticError, match="the step failed"):
            list(stream)
