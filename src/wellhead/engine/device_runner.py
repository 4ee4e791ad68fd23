"""A step on a card: requests with one token as a captured decode, the others together as prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from wellhead.dispatch.frozen import frozen
from wellhead.dispatch.spec import REFERENCE
from wellhead.engine import warm_up
from wellhead.engine.device_sampling import DeviceSampler
from wellhead.engine.runner import StepRunner
from wellhead.engine.scores import Scores
from wellhead.engine.story import Phase, span, untold
from wellhead.model.batch import Batch, Chunk, longest
from wellhead.model.device_graphs import DecodeSteps
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_prompts import Prompts, PromptSteps
from wellhead.model.device_workspace import Workspace
from wellhead.model.state import PAGE_TOKENS
from wellhead.model.working_memory import logit_rows
from wellhead.ops.host_copies import send


class Parts:
    """Scores that come from several computations, put in the order of the step's chunks."""

    def __init__(self) -> None:
        self._logits: list[torch.Tensor] = []
        self._best: list[torch.Tensor] = []
        self._rows: dict[int, list[int]] = {}

    def add(self, logits: torch.Tensor, best: torch.Tensor, rows: Mapping[int, Sequence[int]]) -> None:
        """logits [M, V], best [M]; `rows` says by chunk where its tokens' are."""
        low = sum(len(part) for part in self._logits)
        self._rows |= {chunk: [low + row for row in own] for chunk, own in rows.items()}
        self._logits.append(logits)
        self._best.append(best)

    def scores(self, positions: torch.Tensor | None = None) -> Scores:
        """`positions` as in `Scores`, where one computation is all."""
        at = [row for chunk in sorted(self._rows) for row in self._rows[chunk]]
        if len(self._best) == 1:
            return Scores(self._logits, self._best[0], at, positions=positions)
        return Scores(self._logits, torch.cat(self._best) if self._best else torch.empty(0, dtype=torch.int64), at)


class DeviceRunner(StepRunner):
    """Steps of a `DeviceModel`. All their kernels are compiled, and decode steps captured, here, before any request; a
    step that needs another one raises `dispatch.frozen.CompiledLate`.

    chunk_tokens: tokens of a step's prompts together. context: tokens that a request may have at most (None: what the
    model and the pages allow). largest_graph: decodes of more requests are launched one by one (None: none are).
    `phase` is told what is being done.
    """

    each = 1  # token of a request in a decode
    overlaps = True
    _mtp: DeviceMtp | None = None

    def __init__(
        self, model: DeviceModel, num_pages: int, num_slots: int, window_pages: int | None = None, *,
        chunk_tokens: int, context: int | None = None, captured: bool = True, largest_graph: int | None = None,
        phase: Phase = untold,
    ):  # fmt: skip
        if captured:
            model.choices.check_captured()
        super().__init__(model, num_pages, num_slots, window_pages, phase=phase)
        context = min(context or model.config.max_position_embeddings, num_pages * PAGE_TOKENS)
        self._model, self._logit_rows = model, logit_rows(num_slots)
        if model.choices.of("sampling") != REFERENCE:
            self.sampler = DeviceSampler(num_slots * self.each, model.config.vocab_size, model.device)
        self._compiles = model.device.type == "cuda"  # nothing else compiles
        sizes = ladder(num_slots, largest_graph)
        graphs = [size for size in sizes if largest_graph is None or size <= largest_graph] if captured else []
        self.graph_misses, self.graph_sizes, self._largest_graph = 0, graphs, largest_graph
        with phase(f"{'capturing' if captured else 'compiling'} decodes of {span(sizes)} requests"):
            self._make_steps(context, sizes, captured)
            self._settle()
        with phase(f"{'capturing' if captured else 'compiling'} prompts of up to {chunk_tokens} tokens"):
            self._prompts = PromptSteps(
                model, self.state, chunk_tokens, context, num_slots, captured=captured, mtp=self._mtp
            )
            if self._compiles:
                self._warm_up()
            self._settle()

    def _make_steps(self, context: int, sizes: Sequence[int], captured: bool) -> None:
        """What computes decoding requests, for batches of these sizes, compiled."""
        self._decode = DecodeSteps(
            self._model, self.state, context, sizes, captured=captured, largest_graph=self._largest_graph
        )
        for step in self._decode.steps.values():
            if self._compiles and not step.captured:
                step.run()

    def _settle(self) -> None:
        """Wait for the card, so that a phase's seconds are its own."""
        if self._compiles:
            torch.cuda.synchronize()

    def _warm_up(self) -> None:
        """Compile what every later step launches beside them, see `engine.warm_up`."""
        if self.sampler is not None:
            self.sampler.warm_up()
        warm_up.warm_prompts(self._model, self._prompts)

    def compute(self, chunks: Sequence[Chunk], rows: Sequence[int] = ()) -> Scores:
        with self._frozen():
            return self._compute(chunks, rows)

    def _count(self, captured: bool) -> None:
        """A decode step was a graph, or was not."""
        self.graph_misses = (self.graph_misses or 0) + (not captured)

    def _frozen(self) -> AbstractContextManager[None]:
        """Where nothing may be compiled any more."""
        return frozen() if self._compiles else nullcontext()

    def _compute(self, chunks: Sequence[Chunk], rows: Sequence[int]) -> Scores:
        single = [index for index, chunk in enumerate(chunks) if len(chunk.token_ids) == 1]
        longer = [index for index, chunk in enumerate(chunks) if len(chunk.token_ids) > 1]
        parts, positions = Parts(), None
        if single:
            step = self._decode.of(len(single), longest(chunks[i] for i in single))
            step.load(Batch.build([chunks[i] for i in single], pad_to=step.size))
            if rows:
                self._feed(step.inputs.token_ids, rows)
                positions = step.inputs.positions
            step.run()
            self._count(step.captured)
            wanted = {i: [row] for row, i in enumerate(single) if chunks[i].logits != "none"}
            parts.add(step.logits, step.best, wanted)
        if longer:
            self._compute_prompts(chunks, longer, parts)
        return parts.scores(positions)

    def _feed(self, token_ids: torch.Tensor, rows: Sequence[int]) -> None:
        """The first token ids are those rows of what the last step chose, which the host has not seen."""
        chosen, count = self.chosen, len(rows)
        if list(rows) != list(range(count)):
            at = torch.empty(count, dtype=torch.int64, device=chosen.device)
            send(rows, at)
            chosen = chosen[at]
        token_ids[:count].copy_(chosen[:count])

    def _compute_prompts(self, chunks: Sequence[Chunk], which: Sequence[int], parts: Parts) -> Prompts:
        """Chunks of any length, computed together; the streams of their tokens stay in those of the prompts."""
        done = self._prompts.run([chunks[i] for i in which])
        if len(done.batch.logits_at):
            streams = self._prompts.streams[: len(done.batch.positions)]
            logits, best = self._logits(streams, done.batch.logits_at.to(self._model.device), done.workspace)
            row, wanted = 0, dict[int, Sequence[int]]()
            for index in which:
                count = {"none": 0, "last": 1, "all": len(chunks[index].token_ids)}[chunks[index].logits]
                wanted[index] = range(row, row := row + count)
            parts.add(logits, best, wanted)
        return done

    def _logits(self, streams: torch.Tensor, at: torch.Tensor, ws: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, V] and best ids [N] of the rows `at`. Whole chunks' (scoring wants them) have no room on the
        device: they are made in parts and collected on the host.
        """
        most = self._logit_rows
        if len(at) <= most:
            return self._part(streams[at], ws)
        logits, best = torch.empty(len(at), self.config.vocab_size), []
        for low in range(0, len(at), most):
            part, own = self._part(streams[at[low : low + most]], ws)
            logits[low : low + most] = part
            best.append(own)
            del part  # or the next one needs as much beside it
        return logits, torch.cat(best)

    def _part(self, streams: torch.Tensor, ws: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._model.logits(streams, ws)
        best = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        self._model.best(logits, ws, best)
        return logits, best


def ladder(most: int, largest_graph: int | None = None) -> list[int]:
    """Batch sizes of decodes for up to `most` requests: powers of two, `most`, and that of the largest graph."""
    sizes = {1 << power for power in range(most.bit_length())}
    return sorted(size for size in {*sizes, most, largest_graph or most} if size <= most)
