"""One step of the model over scheduled work, and the tokens sampled from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from wellhead.engine.choice import Launched, choose, read
from wellhead.engine.device_sampling import DeviceSampler
from wellhead.engine.drafting import Proposer
from wellhead.engine.orders import DraftOrders, Orders, Wanted
from wellhead.engine.request import Request
from wellhead.engine.scheduler import Work
from wellhead.engine.scores import Scores
from wellhead.engine.story import Phase, untold
from wellhead.model.batch import Batch, Chunk
from wellhead.model.load import LanguageModel, ServedModel
from wellhead.model.state import PAGE_TOKENS


class StepRunner(ABC):
    """Holds the caches of `num_pages` logical pages, `num_slots` state slots and `window_pages` window pages."""

    proposer: Proposer | None = None
    sampler: DeviceSampler | None = None
    overlaps = False  # whether a step can be launched before what the last one chose has been read
    follows = False  # whether drafts are made behind what is chosen where the step is computed
    graph_misses: int | None = None  # steps whose decodes ran launch by launch; None where there are no graphs
    graph_sizes: Sequence[int] = ()  # batch sizes with a captured decode step

    def __init__(
        self, model: ServedModel, num_pages: int, num_slots: int, window_pages: int | None = None, *,
        phase: Phase = untold,
    ):  # fmt: skip
        self.config = model.config
        with phase("making caches"):
            self.state = model.allocate(num_pages, num_slots, window_pages)
        self.chosen = torch.empty(0, dtype=torch.int64)  # by the last step, where it was computed
        self._rows: Mapping[Request, int] = {}  # whose is where in it

    @abstractmethod
    def compute(self, chunks: Sequence[Chunk], rows: Sequence[int] = ()) -> Scores:
        """Scores of the tokens of `chunks` that want logits, in their order, valid until the next step; `rows` as in
        `Orders`.
        """

    def carried(self, request: Request) -> bool:
        """Whether a request's next token is chosen where the model computes, and all that is wanted of its scores."""
        drawn = self.sampler is not None and self.sampler.takes(request)
        return not request.params.logprobs and (request.greedy or drawn)

    def launch(self, work: Sequence[Work]) -> Launched:
        """Have the work's tokens computed and the next ones chosen, as far as that needs nothing read. Work that is
        `ahead` is behind the step launched last.
        """
        chunks, restores, saves, following, rows = [], [], [], [], []
        for item in work:
            request = item.request
            assert request.state_slot is not None
            if item.restore >= 0:
                restores.append((item.restore, request.state_slot))
            if item.save >= 0:
                saves.append((request.state_slot, item.save))
            wanted: Wanted = "none" if not item.samples else "all" if item.drafts else "last"
            start, tokens = request.computed + item.ahead, request.next_tokens(item.tokens)
            tokens += [draft.token for draft in request.drafts[: item.drafts]]
            if item.ahead:
                rows.append(self._rows[request])
                tokens = [0] * (1 + item.drafts)  # the row's, whatever they are, and with drafts wherever
                start = min(start, len(request.pages) * PAGE_TOKENS - len(tokens))
            last = request.last_draft if item.ahead else -1
            chunks.append(
                Chunk(tokens, start, request.pages, request.state_slot, wanted, request.window_pages, last)
            )
            end = start + item.tokens
            following.append(-1 if item.samples else request.tokens(end, end + 1)[0])
        best = all(item.request.greedy for item in work if item.samples)
        # what is saved at a page's end is saved before any draft is made behind it
        scores = self.execute(Orders(chunks, restores, saves, following if self.follows and best else (), rows))
        choice = choose(work, scores, self.sampler)
        guesses = scores.drafts
        if self.follows and not (best or choice.by_host):
            guesses = self.follow(following, choice.chosen)
        self.chosen, self._rows = choice.chosen, {r: scores.at[span[-1]] for r, span in choice.spans.items()}
        return Launched.of(work, chunks, scores, choice, guesses, leads=not (self.follows and choice.by_host))

    def execute(self, orders: Orders) -> Scores:
        """`compute` the orders' chunks, between what they restore and what they save. Every rank of several does this
        for every step.
        """
        for window_page, slot in orders.restores:
            self.state.restore_tail(window_page, slot)
        scores = self.compute(orders.chunks, orders.rows)
        for slot, window_page in orders.saves:
            self.state.save_tail(slot, window_page)
        self.chosen = scores.best
        return scores

    def follow(self, following: Sequence[int], chosen: torch.Tensor) -> torch.Tensor:
        """Guesses behind the last step as in `Scores.drafts`, over what was chosen of it, int64 [M] as its `best`;
        `following` as in `Orders`. Every rank of several does this.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no drafts by itself; see `draft`")

    def finish(self, launched: Launched) -> dict[Request, list[int]]:
        """The next tokens of every request whose newest token was in the step: its drafts as far as they were accepted,
        then one more. The scheduler is told by its `advance`, not here. A request whose tokens cannot be chosen has its
        `error` set and no tokens; one that has ended since is left out.
        """
        found, drafts = read(launched)
        self.propose(launched.work, launched.chunks, found, drafts)
        return found

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


class Runner(StepRunner):
    """Steps of a model in torch."""

    def __init__(
        self, model: LanguageModel, num_pages: int, num_slots: int, window_pages: int | None = None, *,
        phase: Phase = untold,
    ):  # fmt: skip
        super().__init__(model, num_pages, num_slots, window_pages, phase=phase)
        self.model = model

    def compute(self, chunks: Sequence[Chunk], rows: Sequence[int] = ()) -> Scores:
        batch = Batch.build(chunks)
        if rows:
            batch.token_ids.copy_(self.chosen[rows])
        return Scores.of(self.model.logits(self.model.forward(batch, self.state)[batch.logits_at]))


MakeRunner = Callable[[Any, int, int, int], StepRunner]
"""(model, num_pages, num_slots, window_pages) -> its runner."""
