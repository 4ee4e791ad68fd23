"""A step as plain integers: what rank 0 tells the other ranks to compute."""

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
    page) whose tail is kept after.
    """

    chunks: Sequence[Chunk]
    restores: Sequence[tuple[int, int]] = ()
    saves: Sequence[tuple[int, int]] = ()

    def encode(self) -> list[int]:
        """Every field as integers; lists behind their lengths."""
        words = [len(self.restores), len(self.saves), len(self.chunks)]
        for pair in (*self.restores, *self.saves):
            words += pair
        for chunk in self.chunks:
            words += (chunk.start, chunk.state_slot, _WANTED.index(chunk.logits), chunk.window_pages is not None)
            for values in (chunk.token_ids, chunk.pages, chunk.window_pages or ()):
                words += (len(values), *values)
        return words

    @classmethod
    def decode(cls, words: Sequence[int]) -> Orders:
        """The inverse of `encode`."""
        rest = iter(words)
        restores, saves, chunks = _take(rest, 3)
        return cls(
            restores=[(next(rest), next(rest)) for _ in range(restores)],
            saves=[(next(rest), next(rest)) for _ in range(saves)],
            chunks=[_chunk(rest) for _ in range(chunks)],
        )


def _chunk(rest: Iterator[int]) -> Chunk:
    start, state_slot, wanted, apart = _take(rest, 4)
    token_ids, pages, window_pages = (_take(rest, next(rest)) for _ in range(3))
    return Chunk(token_ids, start, pages, state_slot, _WANTED[wanted], window_pages if apart else None)


def _take(rest: Iterator[int], count: int) -> list[int]:
    return list(islice(rest, count))
