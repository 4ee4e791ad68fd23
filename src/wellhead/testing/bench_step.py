"""Steps of a published model's width: milliseconds beside the bandwidth bound, where they go, and the memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import torch

from wellhead.dispatch.features import Features
from wellhead.model.batch import Batch, Chunk
from wellhead.model.choices import Choices, choose_ops
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import load_config
from wellhead.model.device_graphs import LADDER, DecodeStep, DecodeSteps
from wellhead.model.device_layout import DeviceLayout
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_step import StepInputs
from wellhead.model.dummy import dummy_weights
from wellhead.model.memory_plan import plan_memory
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.state import ModelState, pages_for
from wellhead.model.step_bytes import step_bytes
from wellhead.model.working_memory import Steps
from wellhead.testing import timing
from wellhead.testing.bench import needed_card
from wellhead.testing.record import origin
from wellhead.testing.step_profile import Launch, by_op, profile
from wellhead.testing.step_whole import Kind, kinds, whole_step
from wellhead.testing.timing import Roof

POSITIONS = 128  # consecutive ones that a measurement runs through: every block of either ratio ends in its turn
WARM_UPS, PREFILLS = 4, 10
FILLED = 0.97  # of a card's memory, by the planner; drawing weights takes a little more for a moment
CHAIN = 50  # sums over ranks in one graph


@dataclass(frozen=True)
class Whole:
    """The published model that a step of its first layers stands for."""

    measured: Sequence[Kind]  # the layers that are run
    layers: Sequence[Kind]  # all of them
    bytes: int  # that a step of all of them streams at least


@dataclass(frozen=True)
class Measured:
    """A step that was measured: its record with the keys of benchmarks/results/step.jsonl, and what runs it again."""

    record: dict[str, Any]
    bytes: Mapping[str, int]  # least bytes by op
    run: Callable[[], None]
    whole: Whole | None = None

    def profiled(self) -> dict[str, Any]:
        """The record with each op's part: microseconds, launches, bytes and their share of the roof; and, of a decode,
        what all layers of the published model take and stream.
        """
        runs = profile(self.run)
        ops = by_op(runs)
        parts = {
            op: {
                "us": round(of.us, 1), "launches": round(of.launches, 1), "bytes": self.bytes.get(op, 0),
                "share": round(self.bytes.get(op, 0) / of.us / 1e3 / self.record["roof_gb_s"], 3) if of.us else None,
            }
            for op, of in ops.items()
        }  # fmt: skip
        a_layer = sum(of.launches for of in ops.values()) / self.record["layers"]
        return {**self.record, "launches_per_layer": round(a_layer, 1), **self._of_whole(runs), "ops": parts}

    def _of_whole(self, runs: Sequence[Sequence[Launch]]) -> dict[str, Any]:
        if self.whole is None:
            return {}
        took = whole_step(runs, self.record["ms_mean"], self.whole.measured, self.whole.layers)
        bound = self.whole.bytes / self.record["roof_gb_s"] / 1e6
        return {
            "whole_layers": len(self.whole.layers), "whole_ms": round(took, 4), "whole_bytes": self.whole.bytes,
            "whole_bound_ms": round(bound, 4), "whole_share": round(bound / took, 4),
        }  # fmt: skip


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
        began = time.perf_counter()
        weights = dummy_weights(self.config, split, device)
        torch.cuda.synchronize()
        self._filled = round(time.perf_counter() - began, 1)
        self.model = DeviceModel(weights, self.config, self.numerics, reduce=group.reduce, gather=group.gather)
        self._group = group
        self._slots = max(batches)
        self.state = self.model.allocate(self._slots * self._width, self._slots)
        _fill(self.state)
        self._sizes = ladder(batches)

    def steps(self, *, captured: bool) -> DecodeSteps:
        """The whole ladder up to the largest batch."""
        return DecodeSteps(self.model, self.state, self.context, self._sizes, captured=captured)

    def memory(self) -> dict[str, float]:
        """GB of this rank's card in use now, by whomever, and what the planner says of it."""
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info(self.model.device)
        planned = needed_bytes(self.config, self.split, self.model.choices, self._sizes, self.context)
        return {"memory_gb": round((total - free) / 1e9, 2), "planned_gb": round(planned / 1e9, 2)}

    def decode(self, steps: DecodeSteps, batch: int, roof: Roof, mode: str) -> Measured:
        """One token of each of `batch` requests, at the last POSITIONS positions of the context in turn. ValueError
        where nothing is computed.
        """
        step, times, chosen = steps.of(batch), [], []
        generator = torch.Generator().manual_seed(batch)
        tokens = torch.randint(self.config.vocab_size, (POSITIONS, batch), generator=generator).tolist()
        for number in range(-WARM_UPS, POSITIONS):
            self._load(step, tokens[number], self.context - POSITIONS + max(number, 0))
            times.append(_took(step.run))
            chosen.append(len(step.workspace.ids[:batch].unique()))  # the last layer's
        _check(step.logits[:batch])
        distinct = fmean(chosen[WARM_UPS:])
        measured = self._measured(times[WARM_UPS:], roof, mode, step.run, batch, batch, distinct)
        return replace(measured, record=measured.record | self.memory() | self.sums, whole=self._whole(batch, distinct))

    @functools.cached_property
    def sums(self) -> dict[str, Any]:
        """With several ranks `sum_times`."""
        return {} if self._group.world == 1 else sum_times(self._group, self.model.device)

    def _whole(self, batch: int, distinct: float) -> Whole | None:
        """None where these are all layers, or some kind of them is not among these."""
        config = load_config(published_config(self.name))
        measured, layers = kinds(self.config), kinds(config)
        if len(measured) == len(layers) or not set(layers) <= set(measured):
            return None
        weights = DeviceLayout.of(config, self.split, "meta").allocate(False)
        moved = step_bytes(
            weights, config, self.numerics, tokens=batch, requests=batch, context=self.context, distinct=distinct
        )
        return Whole(measured, layers, moved.total())

    def prefill(self, tokens: int, roof: Roof) -> Measured:
        """The last `tokens` tokens of one request's context, computed together, launch by launch as an engine does."""
        ids = torch.randint(self.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()
        chunk = Chunk(ids, self.context - tokens, range(self._width), 0, logits="last")
        inputs = StepInputs.of(Batch.build([chunk], table_width=self._width), self.model.device, chunked=True)
        ws = self.model.workspace(tokens, self.context, chunked=True)
        logits: list[torch.Tensor] = []

        def run() -> None:
            logits[:] = [self.model.logits(self.model.forward(inputs, self.state, ws)[-1:], ws)]

        times = [_took(run) for _ in range(WARM_UPS + PREFILLS)]
        _check(logits[0])
        return self._measured(times[WARM_UPS:], roof, "prefill", run, tokens, 1, len(ws.ids[:tokens].unique()))

    def _measured(
        self, times: Sequence[float], roof: Roof, mode: str, run: Callable[[], None], tokens: int, requests: int,
        distinct: float,
    ) -> Measured:  # fmt: skip
        moved = step_bytes(
            self.model.weights, self.config, self.numerics, tokens=tokens, requests=requests, context=self.context,
            distinct=distinct,
        )  # fmt: skip
        took, bound = fmean(times), moved.total() / roof.best / 1e6
        record = {
            "model": self.name, "layers": self.config.num_hidden_layers, "tp": self.split.world, "batch": requests,
            "tokens": tokens, "context": self.context, "mode": mode, "gpu": self.card.name,
            "ms_median": round(median(times), 4), "ms_mean": round(took, 4), "bytes": moved.total(),
            "roof_gb_s": round(roof.best, 1), "bound_ms": round(bound, 4), "share": round(bound / took, 4),
            "distinct_experts": round(distinct, 1), "tok_s": round(1e3 * tokens / took, 2),
            "fill_s": self._filled, "weights_gb": round(self.model.weights.nbytes / 1e9, 2),
            **origin(),
        }  # fmt: skip
        return Measured(record, moved, run)

    def _load(self, step: DecodeStep, tokens: Sequence[int], position: int) -> None:
        width = self._width
        chunks = [
            Chunk([token], position, range(row * width, (row + 1) * width), row) for row, token in enumerate(tokens)
        ]
        step.load(Batch.build(chunks, pad_to=step.size, table_width=width))


def ladder(batches: Sequence[int]) -> list[int]:
    """The sizes that are measured, and those that an engine would capture below the largest."""
    return sorted({*batches, *(size for size in LADDER if size < max(batches))})


def needed_bytes(config: ModelConfig, split: Split, choices: Choices, sizes: Sequence[int], context: int) -> int:
    """What the planner says that decodes of these sizes take of one rank's memory, full caches included."""
    slots, steps = max(sizes), Steps(0, tuple(sizes), context)
    plan = plan_memory(config, Numerics.named("checkpoint"), split, 0, steps, choices, slots=slots)
    caches = slots * (pages_for(context) * plan.state.page + plan.state.slot)
    return plan.weights.total + caches + plan.workspace + plan.graphs + plan.reserved


def fitting_layers(
    name: str, split: Split, available: int, batches: Sequence[int], context: int, features: Features
) -> int:
    """The most first layers of a published model that FILLED of `available` bytes hold with these decodes; ValueError
    where not one does.
    """
    raw = published_config(name)
    low, high = 0, int(raw["num_hidden_layers"])
    while low < high:
        middle = (low + high + 1) // 2
        config = load_config(first_layers(raw, middle))
        needed = needed_bytes(config, split, choose_ops(config, split, features), ladder(batches), context)
        low, high = (middle, high) if needed <= FILLED * available else (low, middle - 1)
    if not low:
        raise ValueError(f"not one layer of {name} fits {available / 1e9:.1f} GB over {split.world} ranks; use more")
    return low


def sum_times(group: Group, device: torch.device) -> dict[str, Any]:
    """`sums`: the way that steps take; by way, microseconds of a sum in a captured chain of CHAIN over different bf16
    tensors of 8 and 64 KB, the median over replays. Every rank calls this.
    """
    found: dict[str, Any] = {"sums": group.sums[0]}
    for key, size in (("sum_8k_us", 8 << 10), ("sum_64k_us", 64 << 10)):
        parts = [torch.randn(size // 2, device=device).bfloat16() for _ in range(CHAIN)]
        found[key] = {}
        for way in group.ways:
            group.barrier()
            runs = [functools.partial(group.reduce, part, way) for part in parts]
            found[key][way] = round(timing.times(runs).median, 2)
    return found


def _fill(state: ModelState) -> None:
    """Finite bytes that are not zero, whatever number they are read as."""
    for layer in state.layers:
        for cache in (layer.window, layer.compressed, layer.index_keys):
            if cache is not None:
                cache.view(torch.uint8).random_(0x38, 0x40)
        for rings in (layer.compressor, layer.index_compressor):
            if rings is not None:
                rings.normal_()


def _took(run: Callable[[], None]) -> float:
    """Milliseconds of one run on the card."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def _check(logits: torch.Tensor) -> None:
    if not bool(logits.isfinite().all()):
        raise ValueError("logits are not finite; a step that computes nothing has no speed")
