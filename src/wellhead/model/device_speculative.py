"""Steps that check guessed tokens and guess the next ones, captured as CUDA graphs for a ladder of request counts
and each `reach`.

Every request has the same number of places, its newest token first, then its drafts; what it does not fill is padding.
Two graphs a size: the model over all places with acceptance of best tokens, and the MTP module over what is accepted,
then over its own guesses. Between them the host may say otherwise what was accepted (sampled requests).
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
from wellhead.model.reach import fitting, reaches
from wellhead.model.state import ModelState
from wellhead.ops.host_copies import send

Run = Callable[[], None]


@dataclass(frozen=True)
class Results:
    """Of up to M places, overwritten by every step: logits fp32 [M, V] and best ids int64 [M]; of up to S requests the
    guesses int64 [S, drafts] behind their accepted tokens. All sizes share them: they run one at a time.
    """

    logits: torch.Tensor
    best: torch.Tensor
    guesses: torch.Tensor


class SpeculativeStep:
    """`size` requests of 1 + drafts places each: `load`, `verify`, perhaps `choose`, `draft`."""

    def __init__(
        self, mtp: DeviceMtp, model: DeviceModel, state: ModelState, width: int, ws: Workspace, results: Results
    ):
        self._drafts = results.guesses.shape[1]
        self.each, self.workspace = 1 + self._drafts, ws
        self.size = size = ws.tokens // self.each
        self._mtp, self._model, self._state = mtp, model, state
        places, device = ws.tokens, model.device
        self.logits, self.best = results.logits[:places], results.best[:places]
        self.guesses = results.guesses[:size]

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
        self._accepted = full(-1, places)  # state slots of the places that are right, -1 for the others
        self._following = full(0, places)  # ids behind them
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

    def choose(self, chunks: Sequence[Chunk], following: Sequence[Sequence[int]]) -> None:
        """Of the requests loaded, the places that are right, those of the leading tokens that `chunks` still have, and
        the ids behind each of these tokens; instead of what `verify` found.
        """
        places = self._places([len(chunk.token_ids) for chunk in chunks])
        slots, ids = torch.full(self._accepted.shape, -1), torch.zeros(self._following.shape, dtype=torch.int64)
        for chunk, own, behind in zip(chunks, places, following, strict=True):
            slots[own.start : own.stop] = chunk.state_slot
            ids[own.start : own.stop] = torch.tensor(behind)
        send(slots, self._accepted)
        send(ids, self._following)

    def capture(self, pool: Any) -> None:
        """Replace both parts by the replay of their graphs, whose memory comes from `pool`."""
        self.verify, self.draft = capture([self._verify, self._draft], pool)
        self.captured = True

    def _places(self, counts: Sequence[int]) -> list[range]:
        return [range(row * self.each, row * self.each + count) for row, count in enumerate(counts)]

    def _verify(self) -> None:
        """Logits and best ids of every place; accepted is a draft that is the best id of the accepted place before."""
        inputs = replace(self._inputs, ends={ratio: self._ends(ratio) for ratio in (4, 128)})
        streams = self._model.forward(inputs, self._state, self.workspace)
        self.logits.copy_(self._model.logits(streams, self.workspace))
        self._model.best(self.logits, self.workspace, self.best)
        ids, best = inputs.token_ids.view(self.size, self.each), self.best.view(self.size, self.each)
        right = torch.ones_like(ids)
        right[:, 1:] = (ids[:, 1:] == best[:, :-1]).cumprod(1)
        self._accepted.copy_(torch.where(right.view(-1) > 0, inputs.state_slots, -1))
        self._following.copy_(self.best)

    def _ends(self, ratio: int) -> torch.Tensor:
        """int32 [size]: the place where a block of the request ends, -1 for none; there is one at most, as a request
        has no more places than the smaller ratio.
        """
        inputs = self._inputs
        ends = ((inputs.positions + 1) % ratio == 0) & (inputs.state_slots >= 0)
        places = torch.arange(len(ends), dtype=torch.int32, device=ends.device)
        return torch.where(ends, places, -1).view(self.size, self.each).amax(1)

    def _draft(self) -> None:
        """MTP over the accepted places of the streams that `verify` left in the workspace, then over its guesses."""
        inputs = replace(self._inputs, state_slots=self._accepted)
        streams = self._mtp.forward(self.workspace.streams, self._following, inputs, self._state, self.workspace)
        count = (self._accepted.view(self.size, self.each) >= 0).sum(1)
        at = self._first + (count - 1).clamp_min(0)
        self.guesses.copy_(self._mtp.guess(streams[at], inputs.only(at), self._state, self.workspace, self._drafts))


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
            torch.zeros(most, drafts, dtype=torch.int64, device=device),
        )
        self.steps = {
            (size, pages): SpeculativeStep(mtp, model, state, pages, ws, results)
            for size in sorted(set(sizes), reverse=True)
            for pages, ws in reversed(
                model.workspace(size * (1 + drafts), context, chunked=True).by_reach(reaches(context)).items()
            )
        }  # fmt: skip
        if captured:
            pool = torch.cuda.graph_pool_handle()
            for (size, _), step in self.steps.items():
                if size <= (most if largest_graph is None else largest_graph):
                    step.capture(pool)

    def of(self, requests: int, pages: int) -> SpeculativeStep:
        """The smallest step that holds so many of up to so many pages; ValueError beyond the largest."""
        return fitting(self.steps, requests, pages)
