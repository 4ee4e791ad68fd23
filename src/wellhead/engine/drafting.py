"""What to draft behind a step, and with whom the guesses are left: the host's part of speculative decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from wellhead.engine import speculative
from wellhead.engine.orders import DraftOrders
from wellhead.engine.speculative import Draft
from wellhead.model.batch import Chunk

if TYPE_CHECKING:
    from wellhead.engine.request import Request
    from wellhead.engine.scheduler import Work

DraftCall = Callable[[DraftOrders], torch.Tensor]


class Proposer(Protocol):
    """Leaves drafts with requests."""

    def propose(
        self, draft: DraftCall, work: Sequence[Work], chunks: Sequence[Chunk], found: Mapping[Request, list[int]],
        made: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """As `StepRunner.propose`; `draft` is that of the runner, which every rank takes part in."""


@dataclass(frozen=True)
class Wanting:
    """A request that gets `count` drafts behind `chunk`, the accepted part of its chunk."""

    request: Request
    chunk: Chunk
    count: int


def plan(
    work: Sequence[Work], chunks: Sequence[Chunk], found: Mapping[Request, list[int]], most: int
) -> tuple[DraftOrders, list[Wanting]]:
    """The drafting layer over all tokens of a step that are right, which fills its own window cache, and what each
    request whose newest token was among them is to get.
    """
    accepted: list[Chunk] = []
    following: list[int] = []
    rows: list[int] = []
    wanting: list[Wanting] = []
    first = 0
    for item, chunk in zip(work, chunks, strict=True):
        request, tokens = item.request, found.get(item.request, [])
        count = item.tokens + max(0, len(tokens) - 1)
        end = chunk.start + count
        drafts = speculative.draft_count(request, request.known + len(tokens), most) if tokens else 0
        own = replace(chunk, token_ids=chunk.token_ids[:count], logits="last" if drafts else "none")
        accepted.append(own)
        # behind the newest token of a request that failed comes nothing: any id will do
        behind = tokens[-1] if tokens else 0 if item.samples else request.tokens(end, end + 1)[0]
        following += [*chunk.token_ids[1:count], behind]
        rows += range(first, first + count)
        first += len(chunk.token_ids)
        if item.samples:
            wanting.append(Wanting(request, own, drafts))
    return DraftOrders(accepted, following, rows), wanting


@dataclass(frozen=True)
class DrawnDrafts:
    """Each request's drafts are chosen as it chooses its tokens, from the drafting layer's logits fp32 [N, vocab] at
    the chunks that want a guess, which `draft` gives; one application after the other.
    """

    most: int

    def propose(
        self, draft: DraftCall, work: Sequence[Work], chunks: Sequence[Chunk], found: Mapping[Request, list[int]],
        made: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        orders, wanting = plan(work, chunks, found, self.most)
        logits, left = draft(orders), [one for one in wanting if one.count]
        while left:
            for row, one in zip(logits, left, strict=True):
                one.request.drafts.append(speculative.guess(row, one.request.params, one.request.generator))
            again = [place for place, one in enumerate(left) if one.count > 1]
            if not again:
                return
            left = [_deeper(left[place]) for place in again]
            guesses = [one.request.drafts[-1].token for one in left]
            logits = draft(DraftOrders([one.chunk for one in left], guesses, again))


def _deeper(one: Wanting) -> Wanting:
    """The next application, on the position behind, whose token is the newest one or a draft."""
    token = one.request.drafts[-1].token
    return Wanting(one.request, replace(one.chunk, token_ids=[token], start=one.chunk.end), one.count - 1)


@dataclass(frozen=True)
class BestDrafts:
    """Every draft is the drafting layer's best token, sampled requests' too: `draft` gives ids int64 [S, most], all
    applications at once, for the S requests whose newest token was in the step. `accept` is exact for such drafts.
    """

    most: int

    def propose(
        self, draft: DraftCall, work: Sequence[Work], chunks: Sequence[Chunk], found: Mapping[Request, list[int]],
        made: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        orders, wanting = plan(work, chunks, found, self.most)
        if made is None:
            pairs = zip(work, orders.chunks, strict=True)
            every = [replace(chunk, logits="last" if item.samples else "none") for item, chunk in pairs]
            made = draft(replace(orders, chunks=every))
        for one, tokens in zip(wanting, made.tolist(), strict=True):
            one.request.drafts = [Draft(token) for token in tokens[: one.count]]
