"""Steps that check guessed tokens and guess the next ones, captured as CUDA graphs for a ladder of request counts
and each `reach`.

Every request has the same number of places, its newest token first, then its drafts; what it does not fill is padding.
Two graphs a size: the model over all places with the best id of each; and acceptance of the drafts that are what was
chosen in front of them, the MTP module over what is accepted, then over its own guesses. Between them what was chosen
may be replaced, by what was drawn on the card or by the host. The second leaves what the next step begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from wellhead.model.batch import Batch, Chunk
from wellhead.model.device_graphs import capture
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_step import StepInputs
from wellhead.model.device_workspace import Workspace
from wellhead.model.draft_room import computed
from wellhead.model.reach import fitting, reaches
from wellhead.model.state import ModelState
from wellhead.ops.host_copies import send

Run = Callable[[], None]


@dataclass(frozen=True)
class Results:
    """Of up to M places, overwritten by every step: logits fp32 [M, V] and best ids int64 [M], or what was chosen
    instead; of up to S requests what the next step computes, the newest id and the guesses behind it, int64
    [S, 1 + drafts], and where, int64 [S]. All sizes share them: they run one at a time.
    """

    logits: torch.Tensor
    best: torch.Tensor
    newest: torch.Tensor
    places: torch.Tensor


class SpeculativeStep:
    """`size` requests of 1 + drafts places each: `load`, perhaps `take`, `verify`, perhaps `choose` or `chosen`,
    `draft`.
    """

    def __init__(
        self, mtp: DeviceMtp, model: DeviceModel, state: ModelState, width: int, ws: Workspace, results: Results
    ):
        self.each, self.workspace, self._results = results.newest.shape[1], ws, results
        self.size = size = ws.tokens // self.each
        self._mtp, self._model, self._state = mtp, model, state
        places, device = ws.tokens, model.device
        self.logits, self.best = results.logits[:places], results.best[:places]
        self.guesses = results.newest[:size, 1:]

        def full(value: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        of_request = torch.arange(places, dtype=torch.int32, device=device) // self.each
        self._first = torch.arange(size, device=device) * self.each
        self._inputs = StepInputs(
            token_ids=full(0, places), positions=full(0, places), rows=of_request, state_slots=full(-1, places),
            page_table=full(-1, size, width, dtype=torch.int32),
            window_table=full(-1, size, width, dtype=torch.int32),
            firsts=of_request * self.each,
        )  # fmt: skip
        self.captured = False
        self.verify: Run = self._verify
        self.draft: Run = self._draft

    def load(self, chunks: Sequence[Chunk]) -> list[range]:
        """Copy requests in, the places of each. ValueError for a chunk that does not fit."""
        counts = [len(chunk.token_ids) for chunk in chunks]
        if len(chunks) > self.size or max(counts, default=0) > self.each:
            raise ValueError(f"chunks of {counts} tokens; this step takes {self.size} of at most {self.each}")
        batch, inputs = Batch.build(chunks), self._inputs
        places = self._places(counts)
        at = torch.tensor([place for own in places for place in own])
        for target, values, fill in (
            (inputs.token_ids, batch.token_ids, 0), (inputs.positions, batch.positions, 0),
            (inputs.state_slots, batch.state_slots[batch.rows], -1),
        ):  # fmt: skip
            send(torch.full(target.shape, fill).index_copy_(0, at, values), target)
        for target, table in ((inputs.page_table, batch.page_table), (inputs.window_table, batch.window_table)):
            # padding looks at no page, and nobody beyond its own
            send(table, target[: len(chunks), : table.shape[1]])
        return places

    def take(self, rows: Sequence[int], last: Sequence[int]) -> None:
        """In place of the tokens loaded, those with which the last step says that its requests `rows` go on, their
        places, and as many drafts as `draft_room` allows up to the places `last`. Pages stay as they were loaded.
        """
        at = torch.empty(2, len(rows), dtype=torch.int64, device=self.best.device)
        send(torch.tensor([list(rows), list(last)]), at)
        newest, places = self._results.newest[at[0]], self._results.places[at[0]]
        these, inputs = computed(places, at[1], self.each), self._inputs
        places = places.unsqueeze(1) + torch.arange(self.each, device=places.device)
        for target, values, fill in (
            (inputs.token_ids, newest, 0), (inputs.positions, places, 0), (inputs.state_slots, None, -1)
        ):  # fmt: skip
            own = target.view(self.size, self.each)[: len(rows)]
            own.copy_(torch.where(these, own if values is None else values, fill))

    @property
    def positions(self) -> torch.Tensor:
        """int64 [places] of what is computed."""
        return self._inputs.positions

    def choose(self, chunks: Sequence[Chunk], following: Sequence[Sequence[int]]) -> None:
        """What the host has chosen, instead of the best ids: of the requests loaded, the ids behind each of the leading
        tokens that `chunks` still have, which are right.
        """
        places = self._places([len(chunk.token_ids) for chunk in chunks])
        ids = torch.full(self.best.shape, -1)  # no token: no draft behind it is right
        for own, behind in zip(places, following, strict=True):
            ids[own.start : own.stop] = torch.tensor(behind)
        send(ids, self.best)

    def chosen(self, ids: torch.Tensor) -> None:
        """What was drawn, int64 [places], instead of the best ids."""
        self.best.copy_(ids)

    def capture(self, pool: Any) -> None:
        """Replace both parts by the replay of their graphs, whose memory comes from `pool`."""
        self.verify, self.draft = capture([self._verify, self._draft], pool)
        self.captured = True

    def _places(self, counts: Sequence[int]) -> list[range]:
        return [range(row * self.each, row * self.each + count) for row, count in enumerate(counts)]

    def _verify(self) -> None:
        """Logits and best ids of every place."""
        inputs = replace(self._inputs, ends={ratio: self._ends(ratio) for ratio in (4, 128)})
        streams = self._model.forward(inputs, self._state, self.workspace)
        self.logits.copy_(self._model.logits(streams, self.workspace))
        self._model.best(self.logits, self.workspace, self.best)

    def _ends(self, ratio: int) -> torch.Tensor:
        """int32 [size]: the place where a block of the request ends, -1 for none; there is one at most, as a request
        has no more places than the smaller ratio.
        """
        inputs = self._inputs
        ends = ((inputs.positions + 1) % ratio == 0) & (inputs.state_slots >= 0)
        places = torch.arange(len(ends), dtype=torch.int32, device=ends.device)
        return torch.where(ends, places, -1).view(self.size, self.each).amax(1)

    def _draft(self) -> None:
        """MTP over the accepted places of the streams that `verify` left in the workspace, then over its guesses. A
        draft is accepted that is the id chosen at the accepted place before.
        """
        shape, ws, chosen = (self.size, self.each), self.workspace, self.best.clamp_min(0)
        right = torch.ones(shape, dtype=torch.int64, device=chosen.device)
        right[:, 1:] = (self._inputs.token_ids.view(shape)[:, 1:] == self.best.view(shape)[:, :-1]).cumprod(1)
        accepted = torch.where(right.view(-1) > 0, self._inputs.state_slots, -1)
        inputs = replace(self._inputs, state_slots=accepted)
        streams = self._mtp.forward(ws.streams[: ws.tokens], chosen, inputs, self._state, ws)
        at = self._first + ((accepted.view(shape) >= 0).sum(1) - 1).clamp_min(0)
        newest, places = self._results.newest[: self.size], self._results.places[: self.size]
        newest[:, 0].copy_(chosen[at])
        newest[:, 1:].copy_(self._mtp.guess(streams[at], inputs.only(at), self._state, ws, self.each - 1))
        places.copy_(inputs.positions[at] + 1)


class SpeculativeSteps:
    """The ladder of `sizes`, `drafts` drafts for each request, by (size, pages of the longest request); the largest is
    captured first, those above `largest_graph` run launch by launch.
    """

    def __init__(
        self, mtp: DeviceMtp, model: DeviceModel, state: ModelState, context: int, sizes: Sequence[int], drafts: int, *,
        captured: bool = True, largest_graph: int | None = None,
    ):  # fmt: skip
        if not sizes or min(sizes) < 1 or not 1 <= drafts <= 3:
            raise ValueError(f"sizes {list(sizes)}, {drafts} drafts; expected sizes of at least 1, and 1 to 3 drafts")
        most, device = max(sizes), model.device
        places = most * (1 + drafts)
        results = Results(
            torch.empty(places, model.config.vocab_size, device=device),
            torch.zeros(places, dtype=torch.int64, device=device),
            torch.zeros(most, 1 + drafts, dtype=torch.int64, device=device),
            torch.zeros(most, dtype=torch.int64, device=device),
        )
        self.steps: dict[tuple[int, int], SpeculativeStep] = {}
        whole = model.workspace(places, context, chunked=True)
        for size in sorted(set(sizes), reverse=True):
            for pages, ws in reversed(whole.part(size * (1 + drafts)).by_reach(reaches(context)).items()):
                self.steps[size, pages] = SpeculativeStep(mtp, model, state, pages, ws, results)
        if captured:
            pool = torch.cuda.graph_pool_handle()
            for (size, _), step in self.steps.items():
                if size <= (most if largest_graph is None else largest_graph):
                    step.capture(pool)

    def of(self, requests: int, pages: int) -> SpeculativeStep:
        """The smallest step that holds so many of up to so many pages; ValueError beyond the largest."""
        return fitting(self.steps, requests, pages)
