"""One step of the model over scheduled work, and the tokens sampled from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from wellhead.engine import speculative
from wellhead.engine.orders import Orders
from wellhead.engine.request import Request
from wellhead.engine.scheduler import Work
from wellhead.model.batch import Batch, Chunk
from wellhead.model.load import LanguageModel, ServedModel
from wellhead.ops.sampling import reference as sampling


class StepRunner(ABC):
    """Holds the caches of `num_pages` logical pages, `num_slots` state slots and `window_pages` window pages."""

    graph_misses: int | None = None  # decode steps that ran launch by launch; None where there are no graphs
    graph_sizes: list[int] = []  # batch sizes with a captured decode step

    def __init__(self, model: ServedModel, num_pages: int, num_slots: int, window_pages: int | None = None):
        self.config = model.config
        self.state = model.allocate(num_pages, num_slots, window_pages)

    @abstractmethod
    def compute(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """fp32 logits [N, vocab], on the host, of the tokens of `chunks` that want them, in their order."""

    def run(self, work: Sequence[Work]) -> dict[Request, list[int]]:
        """Compute the work's tokens; the next tokens of every request whose newest token was among them: its drafts as
        far as they were accepted, then one more. The scheduler is told by its `advance`, not here. A request whose
        tokens cannot be chosen has its `error` set and no tokens.
        """
        chunks, restores, saves = [], [], []
        for item in work:
            request = item.request
            assert request.state_slot is not None
            if item.restore >= 0:
                restores.append((item.restore, request.state_slot))
            if item.save >= 0:
                saves.append((request.state_slot, item.save))
            drafts = [draft.token for draft in request.drafts[: item.drafts]]
            wanted: Literal["none", "last", "all"] = "none" if not item.samples else "all" if drafts else "last"
            chunks.append(
                Chunk(
                    request.next_tokens(item.tokens) + drafts, request.computed, request.pages, request.state_slot,
                    logits=wanted, window_pages=request.window_pages,
                )
            )  # fmt: skip
        drafted = [(item, chunk) for item, chunk in zip(work, chunks, strict=True) if item.drafts]
        # a draft's row takes the place of one that the tokens before the draft may still need
        rows = [self.state.ring_rows(c.state_slot, range(c.end - item.drafts, c.end)) for item, c in drafted]
        logits = self.execute(Orders(chunks, restores, saves))  # who saves a page's end has no drafts
        sampled = [item for item in work if item.samples]
        each = logits.split([1 + item.drafts for item in sampled])
        found: dict[Request, list[int]] = {}
        for item, part in zip(sampled, each, strict=True):
            try:
                found[item.request] = self._choose(item, part)
            except Exception as error:  # its own failure, the step went well for the others
                item.request.error = error
        for (item, chunk), before in zip(drafted, rows, strict=True):
            rejected = item.drafts + 1 - len(found.get(item.request, ()))
            if rejected:
                self.state.put_ring_rows(chunk.state_slot, range(chunk.end - rejected, chunk.end), before)
        self.propose(work, chunks, found)
        return found

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

    def propose(  # noqa: B027  # nothing to do without a drafting layer
        self, work: Sequence[Work], chunks: Sequence[Chunk], found: Mapping[Request, list[int]]
    ) -> None:
        """Leave drafts for the next step with the requests of a step that has been computed; none here."""

    def _choose(self, item: Work, logits: torch.Tensor) -> list[int]:
        """The next tokens of a request, its drafts used up."""
        request, params = item.request, item.request.params
        adjusted = logits if request.adjust is None else request.adjust(logits[0], request.output)[None]
        tokens = speculative.accept(adjusted, request.drafts[: item.drafts], params, request.generator)
        if params.logprobs:
            for row, token in zip(logits, tokens, strict=False):
                request.logprobs.append(sampling.logprobs(row, token, params.logprobs))
        request.drafts = []
        return tokens


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
