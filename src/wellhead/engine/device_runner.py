"""A step on a card: requests with one token as a captured decode, the others together as a prefill."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wellhead.engine.runner import StepRunner
from wellhead.model.batch import Batch, Chunk
from wellhead.model.device_graphs import LADDER, DecodeSteps
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_step import StepInputs
from wellhead.model.state import PAGE_TOKENS, pages_for


class DeviceRunner(StepRunner):
    """Steps of a `DeviceModel`: all kernels of decode steps are compiled and captured here, before any request.

    chunk_tokens: tokens of a step's prompts together. context: tokens that a request may have at most (None: what the
    model and the pages allow). largest_graph: requests that a decode step is captured for at most; more of them take
    several steps.
    """

    def __init__(
        self, model: DeviceModel, num_pages: int, num_slots: int, window_pages: int | None = None, *,
        chunk_tokens: int, context: int | None = None, largest_graph: int | None = None, captured: bool = True,
    ):  # fmt: skip
        super().__init__(model, num_pages, num_slots, window_pages)
        context = min(context or model.config.max_position_embeddings, num_pages * PAGE_TOKENS)
        self._model, self._width = model, pages_for(context)
        self._prefill = model.workspace(chunk_tokens, context, chunked=True)
        most = min(num_slots, max(LADDER), largest_graph or max(LADDER))
        sizes = [size for size in LADDER if size < most] + [most]
        self._decode = DecodeSteps(model, self.state, context, sizes, captured=captured)
        self._most, self._captured = most, captured
        self.graph_misses, self.graph_sizes = 0, sorted(sizes) if captured else []

    def compute(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """fp32 logits [N, vocab] on the host of the tokens of `chunks` that want them, in their order."""
        found: dict[int, torch.Tensor] = {}
        single = [index for index, chunk in enumerate(chunks) if len(chunk.token_ids) == 1]
        longer = [index for index, chunk in enumerate(chunks) if len(chunk.token_ids) > 1]
        for low in range(0, len(single), self._most):
            self._decode_some(chunks, single[low : low + self._most], found)
        if longer:
            self._prefill_some(chunks, longer, found)
        rows = [found[index] for index in sorted(found)]
        return torch.cat(rows) if rows else torch.zeros(0, self.config.vocab_size)

    def _decode_some(self, chunks: Sequence[Chunk], which: list[int], found: dict[int, torch.Tensor]) -> None:
        step = self._decode.of(len(which))
        step.load(Batch.build([chunks[i] for i in which], pad_to=step.size, table_width=self._width))
        step.run()
        if not self._captured and self.graph_misses is not None:
            self.graph_misses += 1
        logits = step.logits.cpu()
        for row, index in enumerate(which):
            if chunks[index].logits != "none":
                found[index] = logits[row : row + 1]

    def _prefill_some(self, chunks: Sequence[Chunk], which: list[int], found: dict[int, torch.Tensor]) -> None:
        model, state = self._model, self.state
        batch = Batch.build([chunks[i] for i in which], table_width=self._width)
        streams = model.forward(StepInputs.of(batch, model.device, chunked=True), state, self._prefill)
        if not len(batch.logits_at):
            return
        logits = model.logits(streams[batch.logits_at.to(model.device)], self._prefill).cpu()
        row = 0
        for index in which:
            chunk = chunks[index]
            count = {"none": 0, "last": 1, "all": len(chunk.token_ids)}[chunk.logits]
            if count:
                found[index] = logits[row : row + count]
            row += count
