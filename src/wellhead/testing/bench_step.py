"""One decode step of a published model's width: milliseconds beside the bandwidth bound, and where they go."""

from __future__ import annotations

import datetime
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import triton

from wellhead.model.batch import Batch, Chunk
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import load_config
from wellhead.model.device_graphs import DecodeStep, DecodeSteps
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_weights import ModelWeights, nbytes
from wellhead.model.dummy import dummy_weights
from wellhead.model.numerics import Numerics
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.state import ModelState, pages_for
from wellhead.testing.bench import commit, needed_card
from wellhead.testing.timing import Roof, timed

RECORD, INDEX_KEY = 584, {"fp8": 132, "fp4": 68}


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in a step."""

    name: str
    launches: float
    us: float


def measure_step(
    name: str, layers: int, batch: int, context: int, roof: Roof, *, captured: bool = True
) -> tuple[dict[str, Any], list[Kernel]]:
    """(record with the keys of benchmarks/results/step.jsonl, kernels by time) of the first `layers` layers.

    Weights are random in the official formats, caches hold nonzero bytes, every request is at position context - 1.
    """
    card = needed_card()
    config = load_config(first_layers(published_config(name), layers))
    numerics = Numerics.named("checkpoint")
    model = DeviceModel(dummy_weights(config, Split(), "cuda"), config, numerics)
    width = pages_for(context)
    state = model.allocate(batch * width, batch)
    _fill(state)
    step = DecodeSteps(model, state, context, sizes=(batch,), captured=captured).of(batch)
    generator = torch.Generator().manual_seed(batch)
    tokens = torch.randint(config.vocab_size, (batch,), generator=generator).tolist()
    chunks = [
        Chunk([token], context - 1, range(row * width, (row + 1) * width), row) for row, token in enumerate(tokens)
    ]
    step.load(Batch.build(chunks, pad_to=batch, table_width=width))
    step.run()
    if not bool(step.logits.isfinite().all()):
        raise ValueError("logits are not finite; a step that computes nothing has no speed")
    took = timed(step.run).median / 1e3
    kernels = _profile(step)
    moved = step_bytes(model.weights, config, batch, context, numerics)
    bound = moved / roof.best / 1e6
    record = {
        "model": name, "layers": layers, "tp": 1, "batch": batch, "context": context,
        "mode": "captured" if captured else "eager", "gpu": card.name, "ms_median": round(took, 4), "bytes": moved,
        "roof_gb_s": round(roof.best, 1), "bound_ms": round(bound, 4), "share": round(bound / took, 4),
        "launches_per_layer": round(sum(kernel.launches for kernel in kernels) / layers, 1),
        "tok_s": round(1e3 * batch / took, 2), "torch": torch.__version__, "triton": triton.__version__,
        "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip
    return record, kernels


def step_bytes(weights: ModelWeights, config: ModelConfig, batch: int, context: int, numerics: Numerics) -> int:
    """Least bytes of a decode step: every weight once, of the experts as many as uniform draws choose, and caches."""
    total = nbytes(weights.head) + batch * 2 * config.hidden_size
    count, top_k = config.n_routed_experts, config.num_experts_per_tok
    chosen = count * (1 - (1 - top_k / count) ** batch)
    for layer in weights.layers:
        experts = nbytes(layer.moe.experts)
        table = 0 if layer.moe.table is None else layer.moe.table.nbytes
        total += nbytes(layer) - experts - table + int(experts / count * chosen)
        entries = context // layer.ratio if layer.ratio else 0
        attended = min(entries, config.index_topk) if layer.ratio == 4 else entries
        keys = entries * INDEX_KEY[numerics.index_keys] if layer.ratio == 4 else 0
        total += batch * (RECORD * (min(context, config.sliding_window) + attended) + keys)
    return total


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
