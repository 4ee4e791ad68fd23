"""A step, and the drafting behind it, as plain integers: what rank 0 tells the other ranks to compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from wellhead.model.batch import Chunk

Wanted = Literal["none", "last", "all"]
_WANTED: tuple[Wanted, ...] = get_args(Wanted)


@dataclass(frozen=True)
class Orders:
    """Chunks to compute. restores: (window page, state slot) whose tail is put back before; saves: (state slot, window
    page) whose tail is kept after. following: the id behind each chunk, -1 where that is the best one of its logits;
    given only where every token chosen in the step is a best one, so that drafting need not wait for rank 0's choice.
    rows: of every chunk the row in the last step's choice that its one token is, or with drafts that of its request,
    whose tokens nobody has read yet; empty where the tokens are known.
    """

    chunks: Sequence[Chunk]
    restores: Sequence[tuple[int, int]] = ()
    saves: Sequence[tuple[int, int]] = ()
    following: Sequence[int] = ()
    rows: Sequence[int] = ()

    def encode(self) -> list[int]:
        """Every field as integers; lists behind their lengths."""
        words = [len(self.restores), len(self.saves), len(self.following), len(self.rows), len(self.chunks)]
        for pair in (*self.restores, *self.saves, self.following, self.rows):
            words += pair
        for chunk in self.chunks:
            words += _words(chunk)
        return words

    @classmethod
    def decode(cls, words: Sequence[int]) -> Orders:
        """The inverse of `encode`."""
        rest = iter(words)
        restores, saves, following, rows, chunks = _take(rest, 5)
        return cls(
            restores=[(next(rest), next(rest)) for _ in range(restores)],
            saves=[(next(rest), next(rest)) for _ in range(saves)],
            following=_take(rest, following),
            rows=_take(rest, rows),
            chunks=[_chunk(rest) for _ in range(chunks)],
        )


@dataclass(frozen=True)
class DraftOrders:
    """The drafting layer over `chunks`, whose tokens are followed by the ids `following` [T]; `rows` [T] are the places
    of their inputs in what was computed last, by the model or by the drafting layer. Chunks with logits "last" want a
    guess.
    """

    chunks: Sequence[Chunk]
    following: Sequence[int]
    rows: Sequence[int]

    def encode(self) -> list[int]:
        """Every field as integers; lists behind their lengths."""
        words = [len(self.chunks), len(self.following), *self.following, *self.rows]
        for chunk in self.chunks:
            words += _words(chunk)
        return words

    @classmethod
    def decode(cls, words: Sequence[int]) -> DraftOrders:
        """The inverse of `encode`."""
        rest = iter(words)
        chunks, tokens = _take(rest, 2)
        following, rows = _take(rest, tokens), _take(rest, tokens)
        return cls([_chunk(rest) for _ in range(chunks)], following, rows)


def _words(chunk: Chunk) -> list[int]:
    apart = int(chunk.window_pages is not None)
    words = [chunk.start, chunk.state_slot, _WANTED.index(chunk.logits), apart, chunk.last_draft]
    for values in (chunk.token_ids, chunk.pages, chunk.window_pages or ()):
        words += (len(values), *values)
    return words


def _chunk(rest: Iterator[int]) -> Chunk:
    start, state_slot, wanted, apart, last = _take(rest, 5)
    token_ids, pages, window_pages = (_take(rest, next(rest)) for _ in range(3))
    return Chunk(token_ids, start, pages, state_slot, _WANTED[wanted], window_pages if apart else None, last)


def _take(rest: Iterator[int], count: int) -> list[int]:
    return list(islice(rest, count))
