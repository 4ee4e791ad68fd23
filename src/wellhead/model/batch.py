"""A flat ragged batch: chunks of several requests, prefill and decode alike, and the addresses they use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch

from wellhead.model.state import PAGE_TOKENS, records_per_page
from wellhead.ops.kv_store import reference as kv_store


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one request: `start` tokens came before, `pages` hold all tokens up to this
    chunk's end.
    """

    token_ids: Sequence[int]
    start: int
    pages: Sequence[int]
    state_slot: int
    logits: Literal["none", "last", "all"] = "last"


@dataclass(frozen=True)
class Batch:
    """T tokens of R requests, request by request, positions ascending by one within a request. All int64.

    token_ids, positions, rows [T] (rows = which request); page_table [R, pages] (unused entries 0);
    state_slots [R]; starts [R+1], request r owns tokens starts[r] .. starts[r+1]-1; logits_at [N], the tokens
    that need logits.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    page_table: torch.Tensor
    state_slots: torch.Tensor
    starts: torch.Tensor
    logits_at: torch.Tensor

    @classmethod
    def build(cls, chunks: Sequence[Chunk]) -> Batch:
        """Lay chunks out; ValueError for a chunk beyond its pages or a state slot used twice."""
        sizes = [len(chunk.token_ids) for chunk in chunks]
        for chunk, size in zip(chunks, sizes, strict=True):
            if chunk.start + size > len(chunk.pages) * PAGE_TOKENS:
                raise ValueError(
                    f"a chunk ends at token {chunk.start + size} but its {len(chunk.pages)} pages hold "
                    f"{len(chunk.pages) * PAGE_TOKENS} tokens; allocate pages first"
                )
        slots = [chunk.state_slot for chunk in chunks]
        if len(set(slots)) != len(slots):
            raise ValueError(f"state slots {slots} repeat; a batch holds at most one chunk of a request")
        width = max((len(chunk.pages) for chunk in chunks), default=0)
        table = [[*chunk.pages, *[0] * (width - len(chunk.pages))] for chunk in chunks]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + size)
        wanted: list[int] = []
        for chunk, (low, high) in zip(chunks, pairwise(starts), strict=True):
            first = {"none": high, "last": max(low, high - 1), "all": low}[chunk.logits]
            wanted.extend(range(first, high))
        return cls(
            token_ids=_ints([token for chunk in chunks for token in chunk.token_ids]),
            positions=_ints(
                [p for c, n in zip(chunks, sizes, strict=True) for p in range(c.start, c.start + n)]
            ),
            rows=_ints([row for row, size in enumerate(sizes) for _ in range(size)]),
            page_table=_ints(table).reshape(len(chunks), width),
            state_slots=_ints(slots),
            starts=_ints(starts),
            logits_at=_ints(wanted),
        )

    def slots(self, records: torch.Tensor, ratio: int, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Slots of records [T or len(tokens), ...] in the pool of `ratio` (0 = window); -1 if negative."""
        rows = self.rows if tokens is None else self.rows[tokens]
        return kv_store.slots(self.page_table, rows, records, records_per_page(ratio))

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """Python pairs (low, high) of each request's tokens."""
        return list(pairwise(self.starts.tolist()))


def _ints(values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
