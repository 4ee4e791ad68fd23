"""One step of the model over scheduled work, and the tokens sampled from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from wellhead.engine import speculative
from wellhead.engine.device_sampling import DeviceSampler
from wellhead.engine.drafting import Proposer
from wellhead.engine.orders import DraftOrders, Orders, Wanted
from wellhead.engine.request import Request
from wellhead.engine.scheduler import Work
from wellhead.engine.scores import Scores
from wellhead.engine.story import Phase, untold
from wellhead.model.batch import Batch, Chunk
from wellhead.model.load import LanguageModel, ServedModel


class StepRunner(ABC):
    """Holds the caches of `num_pages` logical pages, `num_slots` state slots and `window_pages` window pages."""

    proposer: Proposer | None = None
    sampler: DeviceSampler | None = None
    graph_misses: int | None = None  # steps whose decodes ran launch by launch; None where there are no graphs
    graph_sizes: Sequence[int] = ()  # batch sizes with a captured decode step

    def __init__(
        self, model: ServedModel, num_pages: int, num_slots: int, window_pages: int | None = None, *,
        phase: Phase = untold,
    ):  # fmt: skip
        self.config = model.config
        with phase("making caches"):
            self.state = model.allocate(num_pages, num_slots, window_pages)

    @abstractmethod
    def compute(self, chunks: Sequence[Chunk]) -> Scores:
        """Scores of the tokens of `chunks` that want logits, in their order, valid until the next step."""

    def run(self, work: Sequence[Work]) -> dict[Request, list[int]]:
        """Compute the work's tokens; the next tokens of every request whose newest token was among them: its drafts as
        far as they were accepted, then one more. The scheduler is told by its `advance`, not here. A request whose
        tokens cannot be chosen has its `error` set and no tokens.
        """
        chunks, restores, saves, following = [], [], [], []
        for item in work:
            request = item.request
            assert request.state_slot is not None
            if item.restore >= 0:
                restores.append((item.restore, request.state_slot))
            if item.save >= 0:
                saves.append((request.state_slot, item.save))
            drafts = [draft.token for draft in request.drafts[: item.drafts]]
            wanted: Wanted = "none" if not item.samples else "all" if drafts else "last"
            chunks.append(
                Chunk(
                    request.next_tokens(item.tokens) + drafts, request.computed, request.pages, request.state_slot,
                    logits=wanted, window_pages=request.window_pages,
                )
            )  # fmt: skip
            end = request.computed + item.tokens
            following.append(-1 if item.samples else request.tokens(end, end + 1)[0])
        sampled = [item for item in work if item.samples]
        if not all(item.request.greedy for item in sampled):
            following = []
        scores = self.execute(Orders(chunks, restores, saves, following))  # who saves a page's end has no drafts
        found = choose(sampled, scores, self.sampler)
        self.propose(work, chunks, found, scores.drafts)
        return found

    def execute(self, orders: Orders) -> Scores:
        """`compute` the orders' chunks, between what they restore and what they save. Every rank of several does this
        for every step.
        """
        for window_page, slot in orders.restores:
            self.state.restore_tail(window_page, slot)
        scores = self.compute(orders.chunks)
        for slot, window_page in orders.saves:
            self.state.save_tail(slot, window_page)
        return scores

    def draft(self, orders: DraftOrders) -> torch.Tensor:
        """The drafting layer over tokens of the last step, or over its own guesses; what comes back is between a runner
        and its proposer. Every rank of several does this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no drafting layer; make the engine's runner with one")

    def propose(
        self, work: Sequence[Work], chunks: Sequence[Chunk], found: Mapping[Request, list[int]],
        made: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Leave drafts for the next step with the requests of a step that has been computed; none without a proposer.
        `made` are guesses that the step itself made.
        """
        if self.proposer is not None and chunks:
            self.proposer.propose(self.draft, work, chunks, found, made)


def choose(
    sampled: Sequence[Work], scores: Scores, sampler: DeviceSampler | None = None
) -> dict[Request, list[int]]:
    """The next tokens of the requests, whose drafts are used up; their tokens' scores follow each other.

    Logits are read from the device only for requests that sample where `sampler` does not draw for them, or adjust
    theirs. A request that fails here has its `error` set and no tokens.
    """
    spans: dict[Request, range] = {}
    low = 0
    for item in sampled:
        spans[item.request] = range(low, low := low + 1 + item.drafts)
    drawn = {r: span for r, span in spans.items() if sampler is not None and sampler.takes(r)}
    chosen = sampler.draw(scores, drawn) if sampler is not None and drawn else scores.best
    ids = chosen.tolist()  # where the host waits for the device
    best = [ids[row] for row in scores.at]
    read = [r for r in spans if not (r.greedy or r in drawn)]
    wanted = [row for request in read for row in spans[request]]
    rows = dict(zip(wanted, scores.read(wanted), strict=True)) if wanted else {}
    found, told = {}, []
    for item in sampled:
        request, span = item.request, spans[item.request]
        try:
            if request.greedy or request in drawn:
                tokens = speculative.accept_best([best[row] for row in span], request.drafts[: item.drafts])
            else:
                tokens = _accept(item, torch.stack([rows[row] for row in span]))
        except Exception as error:  # its own failure, the step went well for the others
            request.error = error
            continue
        request.drafts = []
        found[request] = tokens
        if request.params.logprobs:
            told += [(request, row, token) for row, token in zip(span, tokens, strict=False)]
    if told:
        reporting, at, newest = zip(*told, strict=True)
        each = scores.logprobs(at, newest, [request.params.logprobs for request in reporting])
        for request, one in zip(reporting, each, strict=True):
            request.logprobs.append(one)
    return found


def _accept(item: Work, logits: torch.Tensor) -> list[int]:
    """The next tokens of a request from its logits [1 + drafts, V] on the host; one that adjusts them has no drafts."""
    request = item.request
    if request.adjust is not None:
        logits = request.adjust(logits[0], request.output)[None]
    return speculative.accept(logits, request.drafts[: item.drafts], request.params, request.generator)


class Runner(StepRunner):
    """Steps of a model in torch."""

    def __init__(
        self, model: LanguageModel, num_pages: int, num_slots: int, window_pages: int | None = None, *,
        phase: Phase = untold,
    ):  # fmt: skip
        super().__init__(model, num_pages, num_slots, window_pages, phase=phase)
        self.model = model

    def compute(self, chunks: Sequence[Chunk]) -> Scores:
        batch = Batch.build(chunks)
        return Scores.of(self.model.logits(self.model.forward(batch, self.state)[batch.logits_at]))


MakeRunner = Callable[[Any, int, int, int], StepRunner]
"""(model, num_pages, num_slots, window_pages) -> its runner."""
