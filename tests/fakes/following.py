"""A runner in torch that goes on where the step is computed, as `DeviceSpeculativeRunner` does: it accepts drafts,
makes new ones and takes the next step's tokens and places from there, whatever the host knows by then.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from wellhead.engine.drafting import BestDrafts
from wellhead.engine.orders import DraftOrders, Orders
from wellhead.engine.request import Request
from wellhead.engine.runner import Runner
from wellhead.engine.scores import Scores
from wellhead.model.batch import Batch, Chunk
from wellhead.model.state import PAGE_TOKENS
from wellhead.ops.sampling.reference import sample


class FollowingRunner(Runner):
    """Guesses are the model's own best tokens, `wrong` of them spoilt."""

    overlaps = follows = True

    def __init__(self, *args: object, tokens: int, wrong: float = 0.3):
        super().__init__(*args)  # type: ignore[arg-type]
        self.proposer, self._most = BestDrafts(tokens), tokens
        self._dice, self._wrong = random.Random(tokens), wrong
        self._chunks: Sequence[Chunk] = ()
        self._next: dict[int, tuple[list[int], int]] = {}  # by the last row of a request: its next tokens, and where

    def compute(self, chunks: Sequence[Chunk], rows: Sequence[int] = ()) -> Scores:
        if rows:
            taken = [self._next[row] for row in rows]
            chunks = [replace(c, token_ids=ids, start=at) for c, (ids, at) in zip(chunks, taken, strict=True)]
        self._chunks = chunks
        scores = super().compute(chunks)
        if not rows:
            return scores
        return replace(scores, positions=torch.tensor([c.start + i for c in chunks for i in range(len(c.token_ids))]))

    def execute(self, orders: Orders) -> Scores:
        scores = super().execute(orders)
        return replace(scores, drafts=self.follow(orders.following, scores.best)) if orders.following else scores

    def follow(self, following: Sequence[int], chosen: torch.Tensor) -> torch.Tensor:
        low, ids, self._next, guesses = 0, chosen.tolist(), {}, list[list[int]]()
        for chunk in self._chunks:
            if chunk.logits == "none":
                continue
            count = len(chunk.token_ids) if chunk.logits == "all" else 1
            own, drafts, right = ids[low : low + count], chunk.token_ids[1:] if count > 1 else [], 0
            while right < len(drafts) and drafts[right] == own[right]:
                right += 1
            place = chunk.end - count + right + 1
            guesses.append(self._guess(own[right], place, chunk))
            self._next[low + count - 1] = ([own[right], *guesses[-1]], place)
            low += count
        return torch.tensor(guesses, dtype=torch.int64).view(len(guesses), self._most)

    def draft(self, orders: DraftOrders) -> torch.Tensor:
        """Behind what the host has chosen: `orders` have the accepted tokens."""
        low, found = 0, []
        for chunk in orders.chunks:
            low += len(chunk.token_ids)
            if chunk.logits != "none":
                found.append(self._guess(orders.following[low - 1], chunk.end, chunk))
        return torch.tensor(found, dtype=torch.int64).view(len(found), self._most)

    def _guess(self, token: int, place: int, chunk: Chunk) -> list[int]:
        """What follows a token at a place that has not been computed; written over when it is."""
        found: list[int] = []
        for at in range(place, place + self._most):
            if at // PAGE_TOKENS >= min(len(chunk.pages), len(chunk.window)) or self._dice.random() < self._wrong:
                token = self._dice.randrange(2, 40)
            else:
                batch = Batch.build([replace(chunk, token_ids=[token], start=at, logits="last")])
                token = int(self.model.logits(self.model.forward(batch, self.state)).argmax())
            found.append(token)
        return found


class PlaceSampler:
    """Draws that depend on a request's seed and on how many tokens it has, as `DeviceSampler`'s do."""

    def takes(self, request: Request) -> bool:
        return request.params.temperature > 0 and request.adjust is None

    def draw(self, scores: Scores, spans: Mapping[Request, Sequence[int]], *, unread: int = 0) -> torch.Tensor:
        chosen = scores.best.clone()
        for request, span in spans.items():
            for ahead, (token, logits) in enumerate(zip(span, scores.read(span), strict=True), unread):
                number = len(request.output) + ahead
                if scores.positions is not None:
                    number = int(scores.positions[scores.at[token]]) + 1 - len(request.prompt)
                chosen[scores.at[token]] = drawn(logits, request, number)
        return chosen


def drawn(logits: torch.Tensor, request: Request, number: int) -> int:
    """Token `number` of a request's answer."""
    params = request.params
    if params.temperature == 0:
        return int(logits.argmax())
    generator = torch.Generator().manual_seed(1000 * (request.generator.initial_seed() % 10**6) + number)
    return sample(logits, params.temperature, params.top_k, params.top_p, generator)
