"""Steps over prompts, captured as CUDA graphs for each `reach` and a few numbers of tokens, to which others are filled.

Launch by launch a layer takes the host 2 to 3 ms, five times what the card has to do for 16 tokens and more than four
cards have for 2,048 (H100, docs/log.md). All of these steps share the buffers of the longest; they run one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from wellhead.model.batch import Batch, Chunk, longest
from wellhead.model.device_graphs import capture
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_step import StepInputs
from wellhead.model.device_workspace import Workspace
from wellhead.model.reach import prompt_reaches, prompt_sizes
from wellhead.model.state import ModelState, pages_for
from wellhead.ops.host_copies import send

PADDING = {"token_ids": 0, "positions": 0, "rows": 0, "state_slots": -1, "firsts": 0}


class PromptStep:
    """Up to `ws.tokens` tokens of up to `requests` requests, in buffers that stay where they are: `load`, `run`, and
    with a drafting layer `follow`.
    """

    def __init__(
        self, model: DeviceModel, state: ModelState, ws: Workspace, pages: int, requests: int, mtp: DeviceMtp | None
    ):
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
        self._following = full(0, tokens, dtype=torch.int64)
        self.parts: Sequence[Callable[[], object]] = [lambda: model.forward(self.inputs, state, ws)]
        if mtp is not None:
            given = (ws.streams[:tokens], self._following, self.inputs, state, ws)
            self.parts = [*self.parts, lambda: mtp.forward(*given)]

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

    def run(self) -> None:
        """The model over what is loaded."""
        self.parts[0]()

    def follow(self, following: torch.Tensor) -> torch.Tensor:
        """Streams [N, n, d] of the drafting layer over what `run` left of N tokens; `following` int64 [N] are the ids
        behind them.
        """
        count = len(following)
        self._following[:count].copy_(following)
        self._following[count:].zero_()
        self.parts[1]()
        return self.workspace.streams[:count]


@dataclass(frozen=True)
class Prompts:
    """What was computed last: the batch, its inputs on the device, whose streams are the first of `workspace`'s, and by
    which step.
    """

    batch: Batch
    inputs: StepInputs
    workspace: Workspace  # planned for any number of tokens
    step: PromptStep


class PromptSteps:
    """Steps of up to `chunk_tokens` tokens of up to `requests` requests of up to `context` tokens, filled up to one of
    `sizes`; with `mtp` the drafting layer may follow.
    """

    def __init__(
        self, model: DeviceModel, state: ModelState, chunk_tokens: int, context: int, requests: int, *,
        sizes: Sequence[int] | None = None, captured: bool = True, mtp: DeviceMtp | None = None,
    ):  # fmt: skip
        self.sizes, self.requests = prompt_sizes(chunk_tokens) if sizes is None else list(sizes), requests
        whole = model.workspace(chunk_tokens, context, chunked=True)
        reaches = prompt_reaches(context)
        self.streams, self.ids = whole.streams, whole.ids
        self.steps: dict[tuple[int, int], PromptStep] = {}
        for size in reversed(self.sizes):
            for pages, ws in reversed(whole.part(size).by_reach(reaches).items()):
                self.steps[size, pages] = PromptStep(model, state, ws, pages, min(size, requests), mtp)
        self.by_reach = {pages: self.steps[max(self.sizes), pages].workspace for pages in map(pages_for, reaches)}
        if captured:
            pool = torch.cuda.graph_pool_handle()
            for step in self.steps.values():
                step.parts, step.captured = capture(step.parts, pool), True

    def run(self, chunks: Sequence[Chunk]) -> Prompts:
        """Compute chunks of any length together; their streams are in `streams`, token by token. ValueError for more
        than these steps hold.
        """
        tokens, most = sum(len(chunk.token_ids) for chunk in chunks), longest(chunks)
        size = next((size for size in self.sizes if size >= tokens), None)
        reach = next((pages for pages in self.by_reach if pages >= most), None)
        if size is None or reach is None:
            held = f"{max(self.sizes)} of requests with up to {max(self.by_reach)}"
            raise ValueError(f"prompts of {tokens} tokens, one with {most} pages; a step takes {held}")
        batch, step = Batch.build(chunks), self.steps[size, reach]
        inputs = step.load(batch)
        step.run()
        return Prompts(batch, inputs, self.by_reach[reach], step)
