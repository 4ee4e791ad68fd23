"""A flat ragged batch: chunks of several requests, prefill and decode alike, and the addresses they use."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch

from wellhead.model.state import PAGE_TOKENS, records_per_page
from wellhead.ops.kv_store import reference as kv_store


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one request: `start` tokens came before, `pages` hold all tokens up to this chunk's end.

    window_pages: where their window records are, -1 for a page that the window has passed; None when they are
    numbered like `pages`. last_draft: where the last step says which tokens these are, and their places, the place of
    the last draft that there may be (`model.draft_room`).
    """

    token_ids: Sequence[int]
    start: int
    pages: Sequence[int]
    state_slot: int
    logits: Literal["none", "last", "all"] = "last"
    window_pages: Sequence[int] | None = None
    last_draft: int = -1

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def window(self) -> Sequence[int]:
        return self.pages if self.window_pages is None else self.window_pages


@dataclass(frozen=True)
class Batch:
    """T tokens of R requests, request by request, positions ascending by one within a request. All int64.

    token_ids, positions, rows [T] (rows = which request); page_table, window_table [R, pages], -1 where there is no
    page; state_slots [R]; starts [R+1], request r owns tokens starts[r] .. starts[r+1]-1; logits_at [N], the tokens
    that need logits. The last R - real requests are padding: token 0 at position 0, no pages, state slot -1, no
    logits; they read no cache and write nowhere.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    page_table: torch.Tensor
    window_table: torch.Tensor
    state_slots: torch.Tensor
    starts: torch.Tensor
    logits_at: torch.Tensor
    real: int

    @classmethod
    def build(cls, chunks: Sequence[Chunk], *, pad_to: int | None = None, table_width: int | None = None) -> Batch:
        """Lay chunks out; ValueError for a chunk beyond its pages or a state slot used twice.

        pad_to: fill a batch of one-token chunks up to this many requests. table_width: columns of both tables, at
        least as many as the longest chunk's pages (default: exactly as many), for kernels that are compiled for one.
        """
        for chunk in chunks:
            _check(chunk)
        slots = [chunk.state_slot for chunk in chunks]
        if len(set(slots)) != len(slots):
            raise ValueError(f"state slots {slots} repeat; a batch holds at most one chunk of a request")
        real, sizes = len(chunks), [len(chunk.token_ids) for chunk in chunks]
        padding = 0 if pad_to is None else pad_to - real
        if padding < 0 or (pad_to is not None and any(size != 1 for size in sizes)):
            raise ValueError(
                f"chunks of {sizes} tokens do not fit a decode batch padded to {pad_to}; expected at most {pad_to} "
                "chunks of one token each"
            )
        width = longest(chunks) if chunks else min(padding, 1)
        if table_width is not None and table_width < width:
            raise ValueError(f"table_width is {table_width} but a chunk has {width} pages")
        width = width if table_width is None else table_width
        sizes += [1] * padding
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + size)
        wanted: list[int] = []
        for chunk, (low, high) in zip(chunks, pairwise(starts), strict=False):
            first = {"none": high, "last": max(low, high - 1), "all": low}[chunk.logits]
            wanted.extend(range(first, high))
        zeros, empty = [0] * padding, [()] * padding
        return cls(
            token_ids=_ints([token for chunk in chunks for token in chunk.token_ids] + zeros),
            positions=_ints([p for chunk in chunks for p in range(chunk.start, chunk.end)] + zeros),
            rows=_ints([row for row, size in enumerate(sizes) for _ in range(size)]),
            page_table=_table([*(chunk.pages for chunk in chunks), *empty], width),
            window_table=_table([*(chunk.window for chunk in chunks), *empty], width),
            state_slots=_ints(slots + [-1] * padding),
            starts=_ints(starts),
            logits_at=_ints(wanted),
            real=real,
        )

    def slots(self, records: torch.Tensor, ratio: int, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Slots of records [T or len(tokens), ...] in the pool of `ratio` (0 = window); -1 for a negative record and
        where there is no page.
        """
        rows = self.rows if tokens is None else self.rows[tokens]
        table = self.page_table if ratio else self.window_table
        # of page -1, every slot comes out negative
        return kv_store.slots(table, rows, records, records_per_page(ratio)).clamp_min(-1)

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """Python pairs (low, high) of each request's tokens."""
        return list(pairwise(self.starts.tolist()))


def longest(chunks: Iterable[Chunk]) -> int:
    """Pages of the request that has most, of either kind."""
    return max((len(pages) for chunk in chunks for pages in (chunk.pages, chunk.window)), default=0)


def _check(chunk: Chunk) -> None:
    """ValueError unless every token of a chunk has a page to be written to."""
    for what, pages in (("pages", chunk.pages), ("window pages", chunk.window)):
        if chunk.end > len(pages) * PAGE_TOKENS:
            raise ValueError(
                f"a chunk ends at token {chunk.end} but its {len(pages)} {what} hold {len(pages) * PAGE_TOKENS} "
                "tokens; allocate pages first"
            )
        if chunk.token_ids and min(pages[chunk.start // PAGE_TOKENS :]) < 0:
            raise ValueError(f"a chunk starts at token {chunk.start}, from where its {what} are {pages}: -1 is no page")


def _table(rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    flat = array("q")  # wide tables take torch.tensor milliseconds
    for row in rows:
        flat.extend(row)
        flat.extend(array("q", [-1]) * (width - len(row)))
    if not flat:  # no buffer to look at
        return torch.empty(len(rows), width, dtype=torch.int64)
    return torch.frombuffer(flat, dtype=torch.int64).reshape(len(rows), width)


def _ints(values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
