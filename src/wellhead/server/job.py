"""One HTTP request's work in the engine, as the event loop sees it: some engine requests and what they gained."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from wellhead.engine.request import FinishReason, Request
from wellhead.server.errors import ApiError

_ROWS = 256  # tokens whose log-probabilities are written at a time: some milliseconds


@dataclass
class Piece:
    """What steps added to one choice; `logprobs` one entry a token where they were asked for. `at` is when."""

    text: str
    token_ids: list[int]
    logprobs: list[dict[int, float]]
    finish_reason: FinishReason | None
    at: float = field(default=0.0, compare=False)

    def extend(self, later: Piece) -> None:
        """In place: copying what a long answer has gained at each of its steps would hold up all others."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.finish_reason, self.at = later.finish_reason, later.at

    def parts(self) -> Iterator[Piece]:
        """Itself, or several in its place where there are many log-probabilities: the text with the first, the reason
        with the last.
        """
        lows = range(0, max(1, len(self.logprobs)), _ROWS)
        for low in lows:
            ids = self.token_ids[low : low + _ROWS] if len(lows) > 1 else self.token_ids
            reason = self.finish_reason if low == lows[-1] else None
            yield Piece("" if low else self.text, ids, self.logprobs[low : low + _ROWS], reason, self.at)


class Job:
    """Choices 0, 1, ... of an HTTP request. All methods belong to the event loop's thread."""

    def __init__(self, requests: Sequence[Request], abort: Callable[[Sequence[Request]], None]):
        self.requests = list(requests)
        self.arrived = time.perf_counter()
        self.first: dict[int, float] = {}
        self._abort = abort
        self._open = set(range(len(self.requests)))
        self._pieces: dict[int, Piece] = {}
        self._news = asyncio.Event()
        self._error: ApiError | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def done(self) -> bool:
        return not self._open or self._error is not None

    def gained(self, index: int, piece: Piece) -> None:
        """A reader that is slow finds the pieces joined."""
        if index in self._pieces:
            self._pieces[index].extend(piece)
        else:
            self._pieces[index] = piece
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """End all of it with this error, unless it is done."""
        if not self.done:
            self._error = error
            self.stop()
            self._news.set()

    def stop(self, index: int | None = None) -> None:
        """Abort one choice, or all."""
        which = self._open if index is None else self._open & {index}
        if which:
            self._abort([self.requests[i] for i in which])
        self._open = self._open - which

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """(choice, what it gained) until all ended; raises what `fail` was given. Leaving early aborts."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                found, self._pieces = self._pieces, {}
                for index, piece in found.items():
                    if index not in self._open:  # stopped meanwhile
                        continue
                    for part in piece.parts():
                        if part.finish_reason is not None:
                            self._open.discard(index)
                        yield index, part
                        if len(part.logprobs) == _ROWS:
                            await asyncio.sleep(0)  # others take their turn
                if self._error is not None:
                    raise self._error
                if not self._open:
                    return
        finally:
            self.stop()
