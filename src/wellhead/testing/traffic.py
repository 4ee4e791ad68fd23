"""Requests that arrive in bursts and are dropped at random, over any engine, its pools checked in every step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar


class Ending(Protocol):
    """A request as far as traffic looks at it."""

    @property
    def finish_reason(self) -> str | None: ...


Request = TypeVar("Request", bound=Ending)


def traffic(
    engine: Any,
    live: list[Request],
    submit: Callable[[], Request],
    dice: random.Random,
    requests: int,
    *,
    aborts: float,
    waiting: int,
) -> Iterator[list[Request]]:
    """Submit `requests` requests, at most `waiting` of them `live` at a time, and step until all have ended; yields
    what ended, step by step.

    submit() hands the engine a new request. With probability `aborts` a step is followed by the abort of one, wherever
    it is. `engine.check` raises where a page is lost.
    """
    while requests or live:
        while requests and len(live) < waiting and dice.random() < 0.7:
            live.append(submit())
            requests -= 1
        engine.step()
        if live and dice.random() < aborts:
            engine.abort(dice.choice(live))
        engine.check()
        ended = [request for request in live if request.finish_reason]
        live[:] = [request for request in live if not request.finish_reason]
        yield ended
