"""Steps on a card with drafts from the model's own drafting layer (MTP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from wellhead.engine import warm_up
from wellhead.engine.device_runner import DeviceRunner, Parts
from wellhead.engine.drafting import BestDrafts
from wellhead.engine.orders import DraftOrders, Orders
from wellhead.engine.scores import Scores
from wellhead.engine.story import Phase, untold
from wellhead.model.batch import Chunk, longest
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_prompts import Prompts
from wellhead.model.device_speculative import SpeculativeStep, SpeculativeSteps


@dataclass(frozen=True)
class _Computed:
    """The last step's chunks and scores: `trial` brought their newest token, their streams are in `step`; the others
    are prompts.
    """

    chunks: Sequence[Chunk]
    scores: Scores
    trial: Sequence[int]
    prompts: Sequence[int]
    step: SpeculativeStep | None
    done: Prompts | None


class DeviceSpeculativeRunner(DeviceRunner):
    """Requests that bring their newest token, with or without drafts, are computed together, the same number of places
    for each; the others as a prefill. The drafting layer then follows over the accepted tokens and chains
    `speculative_tokens` guesses, all the best ones, for sampled requests too.

    Where every token of a step is chosen on the card, acceptance and drafting are launched behind it without waiting,
    and so may the next step be: it takes what they leave (`SpeculativeStep.take`). Else the host accepts first.
    """

    follows = True

    def __init__(
        self, model: DeviceModel, num_pages: int, num_slots: int, window_pages: int | None = None, *,
        chunk_tokens: int, speculative_tokens: int, context: int | None = None, captured: bool = True,
        largest_graph: int | None = None, phase: Phase = untold,
    ):  # fmt: skip
        self._mtp: DeviceMtp = DeviceMtp(model)
        self._guesses, self.each = speculative_tokens, 1 + speculative_tokens
        super().__init__(
            model, num_pages, num_slots, window_pages, chunk_tokens=chunk_tokens, context=context, captured=captured,
            largest_graph=largest_graph, phase=phase,
        )  # fmt: skip
        self.proposer = BestDrafts(speculative_tokens)
        self._computed: _Computed | None = None

    def _make_steps(self, context: int, sizes: Sequence[int], captured: bool) -> None:
        self._steps = SpeculativeSteps(
            self._mtp, self._model, self.state, context, sizes, self._guesses, captured=captured,
            largest_graph=self._largest_graph,
        )  # fmt: skip
        for step in self._steps.steps.values():
            if self._compiles and not step.captured:
                step.verify()
                step.draft()

    def _warm_up(self) -> None:
        super()._warm_up()
        warm_up.warm_drafts(self._mtp, self.state, self._prompts)

    def _compute(self, chunks: Sequence[Chunk], rows: Sequence[int]) -> Scores:
        trial = [index for index, chunk in enumerate(chunks) if self._on_trial(chunk)]
        prompts = [index for index, chunk in enumerate(chunks) if not self._on_trial(chunk)]
        parts, step, done, positions = Parts(), None, None, None
        if trial:
            step = self._steps.of(len(trial), longest(chunks[i] for i in trial))
            places = step.load([chunks[i] for i in trial])
            if rows:  # of the last step, places of the requests that go on
                step.take([row // self.each for row in rows], [chunk.last_draft for chunk in chunks])
                positions = step.positions
            step.verify()
            self._count(step.captured)
            parts.add(step.logits, step.best, dict(zip(trial, places, strict=True)))
        if prompts:
            done = self._compute_prompts(chunks, prompts, parts)
        scores = parts.scores(positions)
        self._computed = _Computed(chunks, scores, trial, prompts, step, done)
        return scores

    def execute(self, orders: Orders) -> Scores:
        scores = super().execute(orders)
        return replace(scores, drafts=self.follow(orders.following, scores.best)) if orders.following else scores

    def follow(self, following: Sequence[int], chosen: torch.Tensor) -> torch.Tensor:
        with self._frozen():
            return self._follow(following, chosen)

    def _follow(self, following: Sequence[int], chosen: torch.Tensor) -> torch.Tensor:
        done = self._computed
        assert done is not None
        if done.step is not None:
            if chosen is not done.scores.best:
                done.step.chosen(chosen[: len(done.step.best)])
            done.step.draft()
        wanted = [{"none": 0, "last": 1, "all": len(chunk.token_ids)}[chunk.logits] for chunk in done.chunks]
        ends = list(accumulate(wanted))  # of each chunk's tokens in the scores
        behind = []
        for index in done.prompts:
            chunk, last = done.chunks[index], following[index]
            known = torch.tensor([*chunk.token_ids[1:], max(last, 0)], device=self._model.device)
            if last < 0:
                known[-1] = chosen[done.scores.at[ends[index] - 1]]
            behind.append(known)
        return self._guessed(done, done.chunks, torch.cat(behind) if behind else None)

    def draft(self, orders: DraftOrders) -> torch.Tensor:
        """int64 [S, speculative_tokens] behind the chunks with logits "last", in their order."""
        with self._frozen():
            return self._draft_chosen(orders)

    def _draft_chosen(self, orders: DraftOrders) -> torch.Tensor:
        ends = list(accumulate(len(chunk.token_ids) for chunk in orders.chunks))
        behind = [
            list(orders.following[end - len(chunk.token_ids) : end])
            for chunk, end in zip(orders.chunks, ends, strict=True)
        ]
        done = self._computed
        assert done is not None
        if done.step is not None:
            done.step.choose([orders.chunks[i] for i in done.trial], [behind[i] for i in done.trial])
            done.step.draft()
        known = [token for index in done.prompts for token in behind[index]]
        following = torch.tensor(known, device=self._model.device) if known else None
        return self._guessed(done, orders.chunks, following)

    def _guessed(self, last: _Computed, chunks: Sequence[Chunk], following: torch.Tensor | None) -> torch.Tensor:
        """Guesses of every chunk that wants logits, those on trial from the step that has drafted; the prompts' tokens,
        followed by `following`, go through the drafting layer here.
        """
        prompts = last.done
        parts: list[torch.Tensor] = []
        order: list[int] = []
        if last.step is not None:
            parts.append(last.step.guesses[: len(last.trial)])
            order += last.trial
        if following is not None:
            assert prompts is not None
            streams = prompts.step.follow(following)
            ends = list(accumulate(len(chunks[index].token_ids) for index in last.prompts))
            sampling = [place for place, index in enumerate(last.prompts) if chunks[index].logits != "none"]
            if sampling:
                at = torch.tensor([ends[place] - 1 for place in sampling], device=streams.device)
                newest, ws = prompts.inputs.only(at), prompts.workspace
                parts.append(self._mtp.guess(streams[at], newest, self.state, ws, self._guesses))
                order += [last.prompts[place] for place in sampling]
        guesses = torch.cat(parts) if parts else torch.empty(0, self._guesses, dtype=torch.int64)
        return guesses if order == sorted(order) else guesses[sorted(range(len(order)), key=order.__getitem__)]

    def _on_trial(self, chunk: Chunk) -> bool:
        """Whether a chunk is a request's newest token and drafts."""
        tokens = len(chunk.token_ids)
        return tokens <= self.each and (chunk.logits == "all" or (chunk.logits == "last" and tokens == 1))
