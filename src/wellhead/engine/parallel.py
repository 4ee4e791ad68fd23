"""One engine over several ranks: rank 0 schedules and samples, the others compute what it tells them, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wellhead.engine.orders import DraftOrders, Orders
from wellhead.engine.runner import MakeRunner, StepRunner
from wellhead.engine.scores import Scores
from wellhead.model.batch import Chunk
from wellhead.model.load import ServedModel
from wellhead.model.parallel import Group

_STOP, _ALLOCATE, _STEP, _DRAFT, _FOLLOW = range(5)


class LeadingRunner(StepRunner):
    """Rank 0's runner: tells the other ranks (`follow`) what it is about to do, then does it."""

    def __init__(
        self, group: Group, make_runner: MakeRunner,
        model: ServedModel, num_pages: int, num_slots: int, window_pages: int,
    ):  # fmt: skip
        self._group = group
        group.broadcast([_ALLOCATE, num_pages, num_slots, window_pages])
        self._inner = make_runner(model, num_pages, num_slots, window_pages)
        self.config, self.state = self._inner.config, self._inner.state
        self.proposer, self.sampler = self._inner.proposer, self._inner.sampler
        self.graph_sizes = self._inner.graph_sizes
        self.overlaps, self.follows = self._inner.overlaps, self._inner.follows

    def execute(self, orders: Orders) -> Scores:
        # the best ids every rank has itself, and what `follow` was told
        drawn = bool(orders.rows) and not self.follows and self.chosen is not self._inner.chosen
        self._group.broadcast([_STEP, len(self.chosen) if drawn else 0, *orders.encode()])
        if drawn:
            self._inner.chosen = self._group.share(self.chosen)
        scores = self._inner.execute(orders)
        self.graph_misses = self._inner.graph_misses
        return scores

    def draft(self, orders: DraftOrders) -> torch.Tensor:
        self._group.broadcast([_DRAFT, *orders.encode()])
        return self._inner.draft(orders)

    def follow(self, following: Sequence[int], chosen: torch.Tensor) -> torch.Tensor:
        self._group.broadcast([_FOLLOW, len(chosen), *following])
        return self._inner.follow(following, self._group.share(chosen))

    def compute(self, chunks: Sequence[Chunk], rows: Sequence[int] = ()) -> Scores:
        return self.execute(Orders(chunks, rows=rows))


def follow(group: Group, make_runner: MakeRunner, model: ServedModel) -> None:
    """Another rank's life: compute every step that rank 0 tells, until it says stop."""
    runner: StepRunner | None = None
    while True:
        what, *words = group.broadcast()
        if what == _STOP:
            return
        if what == _ALLOCATE:
            num_pages, num_slots, window_pages = words
            runner = make_runner(model, num_pages, num_slots, window_pages)
            continue
        assert runner is not None
        if what == _STEP:
            drawn, *words = words
            if drawn:
                runner.chosen = group.share(runner.chosen.new_empty(drawn))
            runner.execute(Orders.decode(words))
        elif what == _FOLLOW:
            rows, *following = words
            runner.follow(following, group.share(runner.chosen.new_empty(rows)))
        else:
            runner.draft(DraftOrders.decode(words))


def dismiss(group: Group) -> None:
    """Rank 0 has no more steps: end `follow` on the others."""
    group.broadcast([_STOP])
