"""Decode steps of a published model's width: milliseconds beside the bandwidth bound, where they go, and the memory."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
import triton

from wellhead.model.batch import Batch, Chunk
from wellhead.model.config_file import load_config
from wellhead.model.device_graphs import LADDER, DecodeStep, DecodeSteps
from wellhead.model.device_model import DeviceModel
from wellhead.model.dummy import dummy_weights
from wellhead.model.memory_plan import plan_memory
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.prediction import step_bytes
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.state import ModelState, pages_for
from wellhead.model.working_memory import Steps
from wellhead.testing.bench import commit, needed_card
from wellhead.testing.timing import Roof

POSITIONS = 128  # consecutive ones that a measurement runs through: every block of either ratio ends in its turn
WARM_UPS = 4


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in a step."""

    name: str
    launches: float
    us: float


class StepBench:
    """One rank's first `layers` layers of a published model, random weights in the official formats, caches of nonzero
    bytes for the largest of `batches` at `context` tokens. Every rank makes the same calls.
    """

    def __init__(
        self, name: str, layers: int, batches: Sequence[int], context: int, *, split: Split = WHOLE,
        group: Group = ALONE, device: str = "cuda",
    ):  # fmt: skip
        self.name, self.context, self.split, self.card = name, context, split, needed_card()
        self.config = load_config(first_layers(published_config(name), layers))
        if context > self.config.max_position_embeddings or context <= POSITIONS:
            raise ValueError(
                f"context is {context}, expected {POSITIONS + 1} to {self.config.max_position_embeddings} tokens"
            )
        self.numerics, self._width = Numerics.named("checkpoint"), pages_for(context)
        weights = dummy_weights(self.config, split, device)
        self.model = DeviceModel(weights, self.config, self.numerics, reduce=group.reduce, gather=group.gather)
        self._slots = max(batches)
        self.state = self.model.allocate(self._slots * self._width, self._slots)
        _fill(self.state)
        self._sizes = sorted({*batches, *(size for size in LADDER if size < self._slots)})

    def steps(self, *, captured: bool) -> DecodeSteps:
        """The whole ladder up to the largest batch."""
        return DecodeSteps(self.model, self.state, self.context, self._sizes, captured=captured)

    def memory(self) -> dict[str, float]:
        """GB of this rank's card in use now, by whomever, and what the planner says of it."""
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info(self.model.device)
        steps = Steps(0, tuple(self._sizes), self.context)
        plan = plan_memory(
            self.config, self.numerics, self.split, total, steps, self.model.choices, slots=self._slots
        )
        pages = self._slots * self._width * plan.state.page
        planned = plan.weights.total + pages + self._slots * plan.state.slot + plan.workspace + plan.graphs
        return {"memory_gb": round((total - free) / 1e9, 2), "planned_gb": round((planned + plan.reserved) / 1e9, 2)}

    def measure(self, steps: DecodeSteps, batch: int, roof: Roof, mode: str) -> tuple[dict[str, Any], list[Kernel]]:
        """(record with the keys of benchmarks/results/step.jsonl, kernels by time): one token of each of `batch`
        requests, at the last POSITIONS positions of the context in turn. ValueError where nothing is computed.
        """
        step, times = steps.of(batch), []
        generator = torch.Generator().manual_seed(batch)
        tokens = torch.randint(self.config.vocab_size, (POSITIONS, batch), generator=generator).tolist()
        for number in range(-WARM_UPS, POSITIONS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._load(step, tokens[number], self.context - POSITIONS + max(number, 0))
            begin.record()
            step.run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        if not bool(step.logits[:batch].isfinite().all()):
            raise ValueError("logits are not finite; a step that computes nothing has no speed")
        distinct = len(step.workspace.ids[:batch].unique())
        kernels = _profile(step)
        took = fmean(times[WARM_UPS:])
        moved = step_bytes(self.model.weights, self.config, batch, self.context, self.numerics)
        bound, layers = moved / roof.best / 1e6, self.config.num_hidden_layers
        record = {
            "model": self.name, "layers": layers, "tp": self.split.world, "batch": batch, "context": self.context,
            "mode": mode, "gpu": self.card.name, "ms_median": round(median(times[WARM_UPS:]), 4),
            "ms_mean": round(took, 4), "bytes": moved, "roof_gb_s": round(roof.best, 1), "bound_ms": round(bound, 4),
            "share": round(bound / took, 4), "distinct_experts": distinct,
            "launches_per_layer": round(sum(kernel.launches for kernel in kernels) / layers, 1),
            "tok_s": round(1e3 * batch / took, 2), **self.memory(), "torch": torch.__version__,
            "triton": triton.__version__, "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }  # fmt: skip
        return record, kernels

    def _load(self, step: DecodeStep, tokens: Sequence[int], position: int) -> None:
        width = self._width
        chunks = [
            Chunk([token], position, range(row * width, (row + 1) * width), row) for row, token in enumerate(tokens)
        ]
        step.load(Batch.build(chunks, pad_to=step.size, table_width=width))


def _fill(state: ModelState) -> None:
    """Finite bytes that are not zero, whatever number they are read as."""
    for layer in state.layers:
        for cache in (layer.window, layer.compressed, layer.index_keys):
            if cache is not None:
                cache.view(torch.uint8).random_(0x38, 0x40)
        for rings in (layer.compressor, layer.index_compressor):
            if rings is not None:
                rings.normal_()


def _profile(step: DecodeStep, runs: int = 3) -> list[Kernel]:
    """Kernels of a step, the longest first; overlapping ones count their whole time each."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(runs):
            step.run()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[event.name].append(event.device_time)
    kernels = [Kernel(name, len(took) / runs, sum(took) / runs) for name, took in found.items()]
    return sorted(kernels, key=lambda kernel: -kernel.us)
