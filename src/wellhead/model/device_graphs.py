"""Decode steps captured as CUDA graphs, one for each batch size of a ladder and each `reach` of requests, over buffers
that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from wellhead.model.batch import Batch
from wellhead.model.device_aside import capturing
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_step import StepInputs
from wellhead.model.device_workspace import Workspace
from wellhead.model.reach import fitting, reaches
from wellhead.model.state import ModelState
from wellhead.ops.host_copies import send

LADDER = (1, 2, 4, 8, 16, 32, 64)
WARM_UPS = 2  # the first compiles, the second runs as a replay will


@dataclass(frozen=True)
class DecodeStep:
    """One batch size: where its inputs lie, what it computes, and how it runs, captured or launch by launch.

    logits fp32 [size, V] and the best token int64 [size] of every request are overwritten by each run. A graph knows
    addresses only, so the buffers between its launches live here.
    """

    size: int
    inputs: StepInputs
    logits: torch.Tensor
    best: torch.Tensor
    workspace: Workspace
    run: Callable[[], None]
    captured: bool = False

    def load(self, batch: Batch) -> None:
        """Copy a batch in; it was built with `pad_to` this size. Of its tables the columns that it has: nobody looks
        beyond a request's pages, and tables of a million tokens took the host longer than the step (docs/log.md).
        """
        for field in fields(StepInputs):
            target = getattr(self.inputs, field.name)
            if target is not None:
                source = getattr(batch, field.name)
                if field.name.endswith("_table"):
                    target = target[:, : source.shape[1]]
                if source.shape != target.shape:
                    raise ValueError(
                        f"{field.name} is {tuple(source.shape)}; a decode of {self.size} takes {tuple(target.shape)}"
                    )
                send(source, target)


class DecodeSteps:
    """The ladder, by (size, pages of the longest request). Graphs share buffers and one memory pool: they run one at a
    time, the largest is captured first. Sizes above `largest_graph` run launch by launch.
    """

    def __init__(
        self, model: DeviceModel, state: ModelState, context: int, sizes: Sequence[int] = LADDER, *,
        captured: bool = True, largest_graph: int | None = None,
    ):  # fmt: skip
        if not sizes or min(sizes) < 1:
            raise ValueError(f"batch sizes are {list(sizes)}, expected at least one, each at least 1")
        self._largest = max(sizes) if largest_graph is None else largest_graph
        self._pool = torch.cuda.graph_pool_handle() if captured else None
        self.steps: dict[tuple[int, int], DecodeStep] = {}
        whole = model.workspace(max(sizes), context)
        for size in sorted(set(sizes), reverse=True):
            logits = torch.empty(size, model.config.vocab_size, device=model.device)
            best = torch.zeros(size, dtype=torch.int64, device=model.device)
            for pages, ws in reversed(whole.part(size).by_reach(reaches(context)).items()):
                self.steps[size, pages] = self._step(model, state, pages, ws, logits, best)

    def of(self, requests: int, pages: int) -> DecodeStep:
        """The smallest step that holds so many of up to so many pages; ValueError beyond the largest."""
        return fitting(self.steps, requests, pages)

    def _step(
        self, model: DeviceModel, state: ModelState, pages: int, ws: Workspace, logits: torch.Tensor,
        best: torch.Tensor,
    ) -> DecodeStep:  # fmt: skip
        size, inputs = ws.tokens, empty_inputs(ws.tokens, pages, model.device)

        def compute() -> None:
            logits.copy_(model.logits(model.forward(inputs, state, ws), ws))
            model.best(logits, ws, best)

        if self._pool is None or size > self._largest:
            return DecodeStep(size, inputs, logits, best, ws, compute)
        (replay,) = capture([compute], self._pool)
        return DecodeStep(size, inputs, logits, best, ws, replay, captured=True)


def capture(parts: Sequence[Callable[[], object]], pool: Any) -> list[Callable[[], None]]:
    """The replay of a graph of each part; they run one after the other WARM_UPS times before."""
    side = capturing()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            for part in parts:
                part()
    torch.cuda.current_stream().wait_stream(side)
    graphs = [torch.cuda.CUDAGraph() for _ in parts]
    for graph, part in zip(graphs, parts, strict=True):
        with torch.cuda.graph(graph, pool=pool, stream=side):
            part()
    return [graph.replay for graph in graphs]


def empty_inputs(size: int, pages: int, device: torch.device) -> StepInputs:
    """Inputs of padding alone."""

    def full(value: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.full((size, *shape), value, dtype=dtype, device=device)

    return StepInputs(
        token_ids=full(0, torch.int64),
        positions=full(0, torch.int64),
        rows=torch.arange(size, dtype=torch.int32, device=device),
        state_slots=full(-1, torch.int64),
        page_table=full(-1, torch.int32, pages),
        window_table=full(-1, torch.int32, pages),
    )
