"""One step of the model over scheduled work, and the tokens sampled from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from wellhead.engine.orders import Orders
from wellhead.engine.request import Request
from wellhead.engine.scheduler import Work
from wellhead.model.batch import Batch, Chunk
from wellhead.model.load import LanguageModel, ServedModel
from wellhead.ops.sampling import reference as sampling


class StepRunner(ABC):
    """Holds the caches of `num_pages` logical pages, `num_slots` state slots and `window_pages` window pages."""

    def __init__(self, model: ServedModel, num_pages: int, num_slots: int, window_pages: int | None = None):
        self.config = model.config
        self.state = model.allocate(num_pages, num_slots, window_pages)

    @abstractmethod
    def compute(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """fp32 logits [N, vocab], on the host, of the tokens of `chunks` that want them, in their order."""

    def run(self, work: Sequence[Work]) -> list[tuple[Request, int]]:
        """Compute the work's tokens; (request, next token) of every request whose newest token was among them. The
        scheduler is told by its `advance`, not here.
        """
        chunks, restores, saves = [], [], []
        for item in work:
            request = item.request
            assert request.state_slot is not None
            if item.restore >= 0:
                restores.append((item.restore, request.state_slot))
            if item.save >= 0:
                saves.append((request.state_slot, item.save))
            chunks.append(
                Chunk(
                    request.next_tokens(item.tokens), request.computed, request.pages, request.state_slot,
                    logits="last" if item.samples else "none", window_pages=request.window_pages,
                )
            )  # fmt: skip
        logits = self.execute(Orders(chunks, restores, saves))
        sampled = [item.request for item in work if item.samples]
        return [(request, self._sample(request, row)) for request, row in zip(sampled, logits, strict=True)]

    def execute(self, orders: Orders) -> torch.Tensor:
        """`compute` the orders' chunks, between what they restore and what they save. Every rank of several does this
        for every step.
        """
        for window_page, slot in orders.restores:
            self.state.restore_tail(window_page, slot)
        logits = self.compute(orders.chunks)
        for slot, window_page in orders.saves:
            self.state.save_tail(slot, window_page)
        return logits

    def _sample(self, request: Request, logits: torch.Tensor) -> int:
        params = request.params
        token = sampling.sample(logits, params.temperature, params.top_k, params.top_p, request.generator)
        if params.logprobs:
            request.logprobs.append(sampling.logprobs(logits, token, params.logprobs))
        return token


class Runner(StepRunner):
    """Steps of a model in torch."""

    def __init__(self, model: LanguageModel, num_pages: int, num_slots: int, window_pages: int | None = None):
        super().__init__(model, num_pages, num_slots, window_pages)
        self.model = model

    def compute(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        batch = Batch.build(chunks)
        return self.model.logits(self.model.forward(batch, self.state)[batch.logits_at])


MakeRunner = Callable[[Any, int, int, int], StepRunner]
"""(model, num_pages, num_slots, window_pages) -> its runner."""
