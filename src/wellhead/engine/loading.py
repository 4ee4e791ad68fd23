"""A checkpoint to a model and the runner that steps it, on the CPU or on a card, whole or one rank's part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from wellhead.dispatch.choose import AUTO
from wellhead.engine.runner import MakeRunner, Runner, StepRunner
from wellhead.engine.speculative_runner import SpeculativeRunner
from wellhead.engine.story import Phase, untold
from wellhead.model.checkpoint import Checkpoint
from wellhead.model.config import ModelConfig
from wellhead.model.layers_attention import Ablation
from wellhead.model.load import ServedModel, load_device_model, load_model
from wellhead.model.memory_plan import OutOfMemory, plan_memory
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.reach import CHUNK_TOKENS
from wellhead.model.split import Split
from wellhead.model.working_memory import Steps


def load_with_runner(
    checkpoint: Checkpoint,
    numerics: Numerics,
    device: str = "cpu",
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    context_length: int | None = None,
    largest_graph: int | None = None,
    impl: str | Mapping[str, str] = AUTO,
    captured: bool = True,
    ablation: Ablation | str = Ablation.NONE,
    progress: bool = False,
    split: Split = WHOLE,
    group: Group = ALONE,
    speculative_tokens: int = 0,
    phase: Phase = untold,
) -> tuple[ServedModel, MakeRunner]:
    """The loaded model, and what makes its runner. NotImplementedError for a combination that does not exist yet.

    impl: an implementation for all ops, or {op: implementation}. captured: decode steps as CUDA graphs, on a device.
    context_length: tokens of a request at most (None: the model's). largest_graph: requests of
    the largest decode that is captured on a device (None: all are). `phase` is told what is being done.
    """
    if largest_graph is not None and (largest_graph < 1 or not captured or device == "cpu"):
        raise ValueError(
            f"largest_graph is {largest_graph} on device {device!r}, captured={captured}; expected at least 1, on a "
            "card whose decodes are captured"
        )
    if device == "cpu":
        if not captured:
            raise ValueError("--eager (captured=False) on device 'cpu', where nothing is captured; leave it out")
        drafts = speculative_tokens > 0
        with phase("loading weights"):
            model = load_model(
                checkpoint, numerics, with_mtp=drafts, impl=impl, ablation=ablation, progress=progress, split=split,
                group=group,
            )  # fmt: skip
        if drafts:
            return model, partial(SpeculativeRunner, speculative_tokens=speculative_tokens, phase=phase)
        return model, partial(Runner, phase=phase)
    from wellhead.engine.device_runner import DeviceRunner
    from wellhead.engine.device_speculative_runner import DeviceSpeculativeRunner

    with phase("loading weights"):
        loaded = load_device_model(
            checkpoint, numerics, device, with_mtp=speculative_tokens > 0, impl=impl, captured=captured,
            ablation=ablation, progress=progress, split=split, group=group,
        )  # fmt: skip
    make: Callable[..., StepRunner] = DeviceRunner
    if speculative_tokens:
        make = partial(DeviceSpeculativeRunner, speculative_tokens=speculative_tokens)
    return loaded, partial(
        make, chunk_tokens=chunk_tokens, context=context_length, captured=captured, largest_graph=largest_graph,
        phase=phase,
    )  # fmt: skip


def pages_within(
    fraction: float,
    config: ModelConfig,
    numerics: Numerics,
    split: Split,
    device: str,
    *,
    num_pages: int | None,
    slots: int,
    chunk_tokens: int,
    context_length: int | None = None,
    speculative_tokens: int = 0,
    impl: str | Mapping[str, str] = AUTO,
    captured: bool = True,
    largest_graph: int | None = None,
) -> tuple[int, int]:
    """Pages and window pages that fit when weights, caches and working memory may take this fraction of the card's
    memory; planned from the configuration, before anything is loaded. ValueError for a fraction that means nothing
    here; OutOfMemory names the shortfall, or that others hold the memory.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"mem_fraction is {fraction}, expected a number above 0 and at most 1")
    if num_pages is not None:
        raise ValueError(f"mem_fraction is {fraction} and num_pages {num_pages}; give one of them")
    if not device.startswith("cuda"):
        raise ValueError(f"mem_fraction is {fraction} on device {device!r}, where nothing is pooled; give num_pages")
    if not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no CUDA card; `wellhead doctor` says what is here")
    from wellhead.engine.device_runner import ladder
    from wellhead.model.device_model import chosen

    free, total = torch.cuda.mem_get_info(torch.device(device))
    wanted = int(total * fraction)
    steps = Steps(
        chunk_tokens, tuple(ladder(slots, largest_graph)), context_length or config.max_position_embeddings,
        speculative_tokens, captured,
    )  # fmt: skip
    choices = chosen(config, numerics, split, impl)
    plan = plan_memory(config, numerics, split, wanted, steps, choices, slots=slots).checked()
    if wanted - plan.reserved > free:  # this process holds its context already
        raise OutOfMemory(
            f"mem_fraction {fraction} of {device} is {wanted / 1e9:.2f} GB, but {(total - free) / 1e9:.2f} of its "
            f"{total / 1e9:.2f} GB are in use; end what holds them (nvidia-smi lists it) or lower mem_fraction"
        )
    return plan.pages, plan.window_pages
