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
from wellhead.model.draft_room import draft_room
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
        self._rows: list[range] = []  # of each chunk that wants logits; none of one that has ended
        self._next: dict[int, tuple[list[int], int]] = {}  # by the last row of a request: its next tokens, and where

    def compute(self, chunks: Sequence[Chunk], rows: Sequence[int] = ()) -> Scores:
        if rows:
            taken = [self._next[row] for row in rows]
            chunks = [self._going_on(chunk, *one) for chunk, one in zip(chunks, taken, strict=True)]
        self._chunks, low, self._rows = chunks, 0, []
        for chunk in chunks:
            count = {"none": 0, "last": min(1, len(chunk.token_ids)), "all": len(chunk.token_ids)}[chunk.logits]
            self._rows += [range(low, low := low + count)] if chunk.logits != "none" else []
        if not rows:
            return super().compute(chunks)
        alive = [chunk for chunk in chunks if chunk.token_ids]
        logits = [*(super().compute(alive).parts if alive else ()), torch.zeros(1, self.config.vocab_size)]
        # as many places of everybody: those beyond a request's are its last one, of one that has ended the last row
        at = [own[min(place, len(own) - 1)] if own else low for own in self._rows for place in range(1 + self._most)]
        places = [chunk.start + place for chunk in alive for place in range(len(chunk.token_ids))]
        return replace(Scores.of(torch.cat(logits)), at=at, positions=torch.tensor([*places, 0]))

    def _going_on(self, chunk: Chunk, tokens: list[int], place: int) -> Chunk:
        count = 1 + draft_room(place, chunk.last_draft, self._most) if place <= chunk.last_draft else 0
        return replace(chunk, token_ids=tokens[:count], start=place)

    def execute(self, orders: Orders) -> Scores:
        scores = super().execute(orders)
        return replace(scores, drafts=self.follow(orders.following, scores.best)) if orders.following else scores

    def follow(self, following: Sequence[int], chosen: torch.Tensor) -> torch.Tensor:
        ids, self._next, guesses = chosen.tolist(), {}, list[list[int]]()
        wanting = [chunk for chunk in self._chunks if chunk.logits != "none"]
        for chunk, rows in zip(wanting, self._rows, strict=True):
            if not rows:
                guesses.append([0] * self._most)
                continue
            own, drafts, right = [ids[row] for row in rows], chunk.token_ids[1:] if len(rows) > 1 else [], 0
            while right < len(drafts) and drafts[right] == own[right]:
                right += 1
            place = chunk.end - len(rows) + right + 1
            guesses.append(self._guess(own[right], place, chunk))
            self._next[rows[-1]] = ([own[right], *guesses[-1]], place)
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

    def draw(self, scores: Scores, spans: Mapping[Request, Sequence[int]]) -> torch.Tensor:
        chosen = scores.best.clone()
        for request, span in spans.items():
            for ahead, (token, logits) in enumerate(zip(span, scores.read(span), strict=True)):
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
