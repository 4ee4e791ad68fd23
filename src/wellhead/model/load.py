"""From a checked checkpoint to a model that an engine can run, whichever architecture it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from wellhead.dispatch.choose import AUTO
from wellhead.model.batch import Batch
from wellhead.model.checkpoint import Checkpoint
from wellhead.model.choices import host_choices
from wellhead.model.config import ModelConfig
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.layers_attention import Ablation
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.parameters import load_parameters
from wellhead.model.split import Split
from wellhead.model.state import ModelState
from wellhead.model.stream import load_device_weights
from wellhead.model.weights import iter_tensors


class ServedModel(Protocol):
    """What the engine needs of a model; it holds no request state."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def numerics(self) -> Numerics: ...

    def allocate(self, num_pages: int, num_slots: int, window_pages: int | None = None) -> ModelState:
        """Caches of `num_pages` logical pages, `num_slots` state slots and `window_pages` window pages (None: as many
        as logical ones).
        """

    def describe(self) -> list[tuple[str, str, str]]:
        """(operation, implementation, why) of every operation."""


class LanguageModel(ServedModel, Protocol):
    """A model in torch: its steps are made of host tensors."""

    def forward(self, batch: Batch, state: ModelState) -> torch.Tensor:
        """Compute a batch's tokens, updating `state`: the last layer's output, one row a token."""

    def logits(self, streams: torch.Tensor) -> torch.Tensor:
        """fp32 [N, vocab] of rows of `forward`'s result."""


class DraftingModel(LanguageModel, Protocol):
    """A model with a layer that guesses one token further."""

    def draft(
        self, streams: torch.Tensor, next_token_ids: torch.Tensor, batch: Batch, state: ModelState
    ) -> torch.Tensor:
        """The drafting layer over a batch's tokens: its output, one row a token, from `forward`'s or its own, and the
        ids [T] that follow the tokens. Updates its own caches in `state`.
        """

    def draft_logits(self, streams: torch.Tensor) -> torch.Tensor:
        """fp32 [N, vocab] of rows of `draft`'s result: the token behind the one that follows."""


def load_device_model(
    checkpoint: Checkpoint,
    numerics: Numerics,
    device: str,
    *,
    with_mtp: bool = False,
    impl: str | Mapping[str, str] = AUTO,
    captured: bool = False,
    ablation: Ablation | str = Ablation.NONE,
    progress: bool = False,
    split: Split = WHOLE,
    group: Group = ALONE,
) -> ServedModel:
    """Stream the weights (a rank's) to a card, in the layout that the kernels read. ValueError where there is none.

    captured: its steps will be; errors of what was asked for come before any weight is read.
    """
    from wellhead.model.device_model import DeviceModel, chosen

    if Ablation(ablation) is not Ablation.NONE:
        raise NotImplementedError(f"ablation is {ablation!r}; the kernels have none, use device 'cpu'")
    if device.split(":")[0] != "cuda":
        raise ValueError(f"device is {device!r}, expected 'cpu' or 'cuda'")
    if not torch.cuda.is_available():
        raise ValueError(
            f"device is {device!r}, but torch sees no CUDA card; `wellhead doctor` says what is here, 'cpu' works"
        )
    choices = chosen(checkpoint.config, numerics, split, impl)
    if captured:
        choices.check_captured()
    weights, _ = load_device_weights(checkpoint, split, device, with_mtp=with_mtp, progress=progress)
    return DeviceModel(weights, checkpoint.config, numerics, impl=impl, reduce=group.reduce, gather=group.gather)


def load_model(
    checkpoint: Checkpoint,
    numerics: Numerics,
    *,
    with_mtp: bool = False,
    impl: str | Mapping[str, str] = AUTO,
    ablation: Ablation | str = Ablation.NONE,
    progress: bool = False,
    split: Split = WHOLE,
    group: Group = ALONE,
) -> LanguageModel:
    """Read the weights, unpacked to fp32; a rank of several keeps its part. MTP's stay on disk unless asked for.

    Errors of what was asked for come before any weight is read.
    """
    host_choices(impl)
    ablation = Ablation(ablation)
    names = [name for name in checkpoint.tensors if with_mtp or not name.startswith("mtp.")]
    config, tensors = checkpoint.config, iter_tensors(checkpoint, names, progress=progress)
    named = load_parameters(tensors, config, with_mtp=with_mtp, split=split)
    return DeepseekV4(named, config, numerics, impl=impl, ablation=ablation, split=split, group=group)
