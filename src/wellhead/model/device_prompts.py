"""Steps over prompts: short ones captured as CUDA graphs, for a few numbers of tokens and each `reach`, the others
launch by launch.

Launch by launch 16 tokens took the host 3.3 ms a layer, five times what the card has to do (H100, docs/log.md).
All of these steps share the buffers of the longest; they run one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from wellhead.model.batch import Batch, Chunk, longest
from wellhead.model.device_graphs import capture
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_step import StepInputs
from wellhead.model.device_workspace import Workspace
from wellhead.model.reach import captured_sizes, prompt_reaches
from wellhead.model.state import ModelState
from wellhead.ops.host_copies import send

PADDING = {"token_ids": 0, "positions": 0, "rows": 0, "state_slots": -1, "firsts": 0}  # as `warm_up.padding` has it


class PromptStep:
    """Up to `ws.tokens` tokens of up to `requests` requests, in buffers that stay where they are."""

    def __init__(self, model: DeviceModel, state: ModelState, ws: Workspace, pages: int, requests: int):
        self.workspace = ws  # a graph knows addresses only
        tokens, self.captured = ws.tokens, False

        def full(value: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=model.device)

        self.inputs = StepInputs(
            token_ids=full(0, tokens, dtype=torch.int64), positions=full(0, tokens, dtype=torch.int64),
            rows=full(0, tokens), state_slots=full(-1, tokens, dtype=torch.int64),
            page_table=full(-1, requests, pages), window_table=full(-1, requests, pages), firsts=full(0, tokens),
            # every request may end a block in front of its first whole one
            ends={ratio: full(-1, min(tokens, tokens // ratio + requests)) for ratio in (4, 128)},
        )  # fmt: skip

        def compute() -> None:
            model.forward(self.inputs, state, ws)

        self.run: Callable[[], None] = compute

    def load(self, batch: Batch) -> StepInputs:
        """Copy a batch in; its own tokens of what is there."""
        given, inputs, count = StepInputs.of(batch, "cpu", chunked=True), self.inputs, len(batch.positions)
        assert given.firsts is not None and inputs.firsts is not None and given.ends and inputs.ends
        pairs = [(getattr(given, name), getattr(inputs, name), fill) for name, fill in PADDING.items()]
        pairs += [(given.ends[ratio], inputs.ends[ratio], -1) for ratio in given.ends]
        for values, target, fill in pairs:
            host = torch.full(target.shape, fill, dtype=target.dtype)
            host[: len(values)] = values
            send(host, target)
        for values, target in ((given.page_table, inputs.page_table), (given.window_table, inputs.window_table)):
            # of padding, and beyond a request's pages, nobody looks at what is there
            send(values, target[: values.shape[0], : values.shape[1]])
        return replace(
            inputs, token_ids=inputs.token_ids[:count], positions=inputs.positions[:count], rows=inputs.rows[:count],
            state_slots=inputs.state_slots[:count], firsts=inputs.firsts[:count],
        )  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """What was computed last: the batch, its inputs on the device, whose streams are the first of `workspace`'s."""

    batch: Batch
    inputs: StepInputs
    workspace: Workspace  # planned for any number of tokens


class PromptSteps:
    """Steps of up to `chunk_tokens` tokens of up to `requests` requests of up to `context` tokens. Those of up to
    `sizes[-1]` tokens are filled up to one of `sizes`.
    """

    def __init__(
        self, model: DeviceModel, state: ModelState, chunk_tokens: int, context: int, requests: int, *,
        sizes: Sequence[int] | None = None, captured: bool = True,
    ):  # fmt: skip
        self._model, self._state = model, state
        self.sizes = captured_sizes(chunk_tokens) if sizes is None else list(sizes)
        whole = model.workspace(chunk_tokens, context, chunked=True)
        reaches = prompt_reaches(context)
        self.streams, self.ids, self.by_reach = whole.streams, whole.ids, whole.by_reach(reaches)
        self.steps = {
            (size, pages): PromptStep(model, state, ws, pages, min(size, requests))
            for size in reversed(self.sizes) for pages, ws in reversed(whole.part(size).by_reach(reaches).items())
        }  # fmt: skip
        if captured:
            pool = torch.cuda.graph_pool_handle()
            for step in self.steps.values():
                (step.run,), step.captured = capture([step.run], pool), True

    def run(self, chunks: Sequence[Chunk]) -> Prompts:
        """Compute chunks of any length together; their streams are in `streams`, token by token. ValueError for more
        than these steps hold.
        """
        tokens, most = sum(len(chunk.token_ids) for chunk in chunks), longest(chunks)
        reach = next((pages for pages in self.by_reach if pages >= most), None)
        if tokens > len(self.streams) or reach is None:
            held = f"{len(self.streams)} of requests with up to {max(self.by_reach)}"
            raise ValueError(f"prompts of {tokens} tokens, one with {most} pages; a step takes {held}")
        ws, size = self.by_reach[reach], next((size for size in self.sizes if size >= tokens), None)
        if size is None:
            batch = Batch.build(chunks, table_width=reach)
            inputs = StepInputs.of(batch, self._model.device, chunked=True)
            self._model.forward(inputs, self._state, ws)
        else:
            batch, step = Batch.build(chunks), self.steps[size, reach]
            inputs = step.load(batch)
            step.run()
        return Prompts(batch, inputs, ws)
