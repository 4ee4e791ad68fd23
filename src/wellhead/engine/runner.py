"""One step of the model over scheduled work, and the tokens sampled from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wellhead.engine.request import Request
from wellhead.engine.scheduler import Work
from wellhead.model.batch import Batch, Chunk
from wellhead.model.load import LanguageModel
from wellhead.ops.sampling import reference as sampling


class Runner:
    """Holds the caches of `num_pages` logical pages and `num_slots` state slots."""

    def __init__(self, model: LanguageModel, num_pages: int, num_slots: int):
        self.model = model
        self.state = model.allocate(num_pages, num_slots)

    def run(self, work: Sequence[Work]) -> list[tuple[Request, int]]:
        """Compute the work's tokens; (request, next token) of every request whose newest token was among
        them.
        """
        chunks = []
        for item in work:
            request = item.request
            assert request.state_slot is not None
            chunks.append(
                Chunk(
                    request.next_tokens(item.tokens), request.computed, request.pages, request.state_slot,
                    logits="last" if item.samples else "none",
                )
            )  # fmt: skip
        logits = self.compute(chunks)
        sampled = [item.request for item in work if item.samples]
        for item in work:
            item.request.computed += item.tokens
        return [(request, self._sample(request, row)) for request, row in zip(sampled, logits, strict=True)]

    def compute(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """fp32 logits [N, vocab] of the tokens of `chunks` that want them."""
        batch = Batch.build(chunks)
        return self.model.logits(self.model.forward(batch, self.state)[batch.logits_at])

    def _sample(self, request: Request, logits: torch.Tensor) -> int:
        params = request.params
        token = sampling.sample(logits, params.temperature, params.top_k, params.top_p, request.generator)
        if params.logprobs:
            request.logprobs.append(sampling.logprobs(logits, token, params.logprobs))
        return token
