"""Steps of a published model's width: milliseconds beside the bandwidth bound, where they go, and the memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import torch

from wellhead.model.batch import Batch, Chunk
from wellhead.model.config_file import load_config
from wellhead.model.device_graphs import DecodeStep, DecodeSteps
from wellhead.model.device_layout import DeviceLayout
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_prompts import PromptSteps
from wellhead.model.device_speculative import SpeculativeStep, SpeculativeSteps
from wellhead.model.device_weights import ModelWeights
from wellhead.model.dummy import dummy_weights
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.state import ModelState, pages_for
from wellhead.model.step_bytes import step_bytes
from wellhead.testing.bench import needed_card
from wellhead.testing.record import origin
from wellhead.testing.step_fit import ladder, needed_bytes
from wellhead.testing.step_measured import Measured, Whole
from wellhead.testing.step_whole import kinds
from wellhead.testing.sum_times import sum_times
from wellhead.testing.timing import Roof

POSITIONS = 128  # consecutive ones that a measurement runs through: every block of either ratio ends in its turn
WARM_UPS, PREFILLS = 4, 10


class OneRank(Group):
    """One of `ranks` by itself: its sums are its own part, and every rank's columns are its own."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self._ranks = ranks

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        return part.repeat(1, self._ranks)


class StepBench:
    """One rank's first `layers` layers of a published model, random weights in the official formats, caches of nonzero
    bytes for the largest of `batches` at `context` tokens. With `drafts`, 1 to 3, decodes verify as many tokens behind
    each request's newest one. Steps are planned for requests of up to `limit` tokens (the context), as a server's are.
    Every rank makes the same calls.
    """

    def __init__(
        self, name: str, layers: int, batches: Sequence[int], context: int, *, limit: int | None = None,
        drafts: int = 0, split: Split = WHOLE, group: Group = ALONE, device: str = "cuda",
    ):  # fmt: skip
        self.name, self.context, self.drafts, self.split, self.card = name, context, drafts, split, needed_card()
        self.config = load_config(first_layers(published_config(name), layers))
        fewest, most = POSITIONS + 2 * drafts + 1, self.config.max_position_embeddings
        if not fewest <= context <= most:
            raise ValueError(f"context is {context}, expected {fewest} to {most} tokens")
        self.limit = context if limit is None else limit
        if not context <= self.limit <= most:
            raise ValueError(f"limit is {limit}, expected the context's {context} to {most} tokens")
        self.numerics, self._width = Numerics.named("checkpoint"), pages_for(context)
        self._group = group
        self.plan(dummy_weights(self.config, split, device, with_mtp=drafts > 0))
        self._slots = max(batches)
        self.state = self.model.allocate(self._slots * self._width, self._slots)
        _fill(self.state)
        self._sizes = ladder(batches)

    def plan(self, weights: ModelWeights) -> None:
        """Choose and plan every op anew, for the steps that are made from now on."""
        reduce, gather = self._group.reduce, self._group.gather
        self.model = DeviceModel(weights, self.config, self.numerics, reduce=reduce, gather=gather)

    def steps(self, *, captured: bool) -> DecodeSteps | SpeculativeSteps:
        """The whole ladder up to the largest batch."""
        made = (self.model, self.state, self.limit, self._sizes)
        if self.drafts:
            return SpeculativeSteps(DeviceMtp(self.model), *made, self.drafts, captured=captured)
        return DecodeSteps(*made, captured=captured)

    def memory(self) -> dict[str, float]:
        """GB of this rank's card in use now, by whomever, and what the planner says of it."""
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info(self.model.device)
        of_steps = (self._sizes, self.context, self.limit, self.drafts)
        planned = needed_bytes(self.config, self.split, self.model.choices, *of_steps)
        return {"memory_gb": round((total - free) / 1e9, 2), "planned_gb": round(planned / 1e9, 2)}

    def decode(self, steps: DecodeSteps | SpeculativeSteps, batch: int, roof: Roof, mode: str) -> Measured:
        """One token of each of `batch` requests, with drafts behind it or without, at the last POSITIONS positions of
        the context in turn; with drafts also `draft_ms`, what drafting the next ones takes where all these are
        accepted. ValueError where nothing is computed.
        """
        step, each, times, drafting, chosen = steps.of(batch, self._width), 1 + self.drafts, [], [], []
        run = step.verify if isinstance(step, SpeculativeStep) else step.run
        for number in range(-WARM_UPS, POSITIONS):
            chunks = self._load(step, batch, max(number, 0))
            times.append(_took(run))
            chosen.append(_distinct(step.workspace.ids[: batch * each]))  # the last layer's
            if isinstance(step, SpeculativeStep):
                step.choose(chunks, [[*chunk.token_ids[1:], chunk.token_ids[0]] for chunk in chunks])
                drafting.append(_took(step.draft))
        _check(step.logits[: batch * each])
        distinct = fmean(chosen[WARM_UPS:])
        prepare = functools.partial(self._load, step, batch)
        measured = self._measured(times[WARM_UPS:], roof, mode, run, prepare, batch * each, batch, distinct)
        drafted = {"draft_ms": round(fmean(drafting[WARM_UPS:]), 4)} if drafting else {}
        record = measured.record | {"drafts": self.drafts} | drafted | self.memory() | self.sums
        return replace(measured, record=record, whole=self._whole(batch, batch * each, distinct))

    def once(self, steps: DecodeSteps, batch: int, number: int) -> tuple[float, torch.Tensor]:
        """Milliseconds and logits [batch, V] of a decode at one of the POSITIONS; ValueError as `decode`."""
        step = steps.of(batch, self._width)
        self._load(step, batch, number)
        took = _took(step.run)
        _check(step.logits[:batch])
        return took, step.logits[:batch]

    @functools.cached_property
    def sums(self) -> dict[str, Any]:
        """With several ranks `sum_times`; `alone` of one without the others."""
        if self._group.world == 1:
            return {"alone": True} if self.split.world > 1 else {}
        return sum_times(self._group, self.model.device)

    def _whole(self, batch: int, tokens: int, distinct: float) -> Whole | None:
        """None where these are all layers, or some kind of them is not among these."""
        config = load_config(published_config(self.name))
        measured, layers = kinds(self.config), kinds(config)
        if len(measured) == len(layers) or not set(layers) <= set(measured):
            return None
        weights = DeviceLayout.of(config, self.split, "meta").allocate(False)
        moved = step_bytes(
            weights, config, self.numerics, tokens=tokens, requests=batch, context=self.context, distinct=distinct
        )
        return Whole(measured, layers, moved.total())

    def prefill(self, tokens: int, roof: Roof) -> Measured:
        """The last `tokens` tokens of one request's context, computed together by a step of exactly that length."""
        ids = torch.randint(self.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()
        chunk = Chunk(ids, self.context - tokens, range(self._width), 0, logits="last")
        prompts = PromptSteps(self.model, self.state, tokens, self.limit, 1, sizes=[tokens])
        logits: list[torch.Tensor] = []

        def run() -> None:
            ws = prompts.run([chunk]).workspace
            logits[:] = [self.model.logits(prompts.streams[tokens - 1 : tokens], ws)]

        times = [_took(run) for _ in range(WARM_UPS + PREFILLS)]
        _check(logits[0])
        distinct = _distinct(prompts.ids[:tokens])
        return self._measured(times[WARM_UPS:], roof, "prefill", run, lambda _: None, tokens, 1, distinct)

    def _measured(
        self, times: Sequence[float], roof: Roof, mode: str, run: Callable[[], None],
        prepare: Callable[[int], object], tokens: int, requests: int, distinct: float,
    ) -> Measured:  # fmt: skip
        moved = step_bytes(
            self.model.weights, self.config, self.numerics, tokens=tokens, requests=requests, context=self.context,
            distinct=distinct,
        )  # fmt: skip
        took, bound = fmean(times), moved.total() / roof.best / 1e6
        record = {
            "model": self.name, "layers": self.config.num_hidden_layers, "tp": self.split.world, "batch": requests,
            "tokens": tokens, "context": self.context, "limit": self.limit, "mode": mode, "gpu": self.card.name,
            "ms_median": round(median(times), 4), "ms_mean": round(took, 4), "bytes": moved.total(),
            "roof_gb_s": round(roof.best, 1), "bound_ms": round(bound, 4), "share": round(bound / took, 4),
            "distinct_experts": round(distinct, 1), "tok_s": round(1e3 * tokens / took, 2),
            **origin(),
        }  # fmt: skip
        return Measured(record, moved, run, prepare)

    def _load(self, step: DecodeStep | SpeculativeStep, batch: int, number: int) -> list[Chunk]:
        """The inputs at one of the POSITIONS, the same whenever they are asked for."""
        size, width = (batch, 1 + self.drafts), self._width
        position = self.context - POSITIONS - 2 * self.drafts + number  # the next drafts have their places as well
        generator = torch.Generator().manual_seed(batch * POSITIONS + number)
        tokens = torch.randint(self.config.vocab_size, size, generator=generator).tolist()
        chunks = [Chunk(own, position, range(row * width, (row + 1) * width), row) for row, own in enumerate(tokens)]
        if isinstance(step, SpeculativeStep):
            step.load(chunks)
        else:
            step.load(Batch.build(chunks, pad_to=step.size))
        return chunks


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


def _distinct(ids: torch.Tensor) -> int:
    """How many experts tokens chose."""
    return len(ids.unique())


def _check(logits: torch.Tensor) -> None:
    if not bool(logits.isfinite().all()):
        raise ValueError("logits are not finite; a step that computes nothing has no speed")
