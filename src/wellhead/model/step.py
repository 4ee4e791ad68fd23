"""Index arithmetic and rotation tables of one forward step, computed once and shared by all layers."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch

from wellhead.model.batch import Batch
from wellhead.model.config import KIND_OF_RATIO, LayerKind, ModelConfig, RopeParameters
from wellhead.ops.compressor import reference as compressor
from wellhead.ops.rope import reference as rope

Rotation = tuple[torch.Tensor, torch.Tensor]


def frequencies(parameters: RopeParameters) -> torch.Tensor:
    """fp32 [dim/2] of one layer kind."""
    scaling = parameters.yarn
    yarn = None
    if scaling is not None:
        yarn = rope.Yarn(
            scaling.factor, scaling.original_max_position_embeddings, scaling.beta_fast, scaling.beta_slow
        )
    return rope.frequencies(parameters.dim, parameters.theta, yarn)


class Frequencies:
    """Rotation frequencies of window layers (and MTP) and of compressing layers."""

    def __init__(self, config: ModelConfig):
        self._of_kind = {kind: frequencies(config.rope(kind)) for kind in LayerKind}

    def of(self, ratio: int) -> torch.Tensor:
        return self._of_kind[KIND_OF_RATIO[ratio]]


class Step:
    """A batch with everything its layers share. `ratio` 0 names the window and the plain rotation."""

    def __init__(self, batch: Batch, freqs: Frequencies, window_size: int):
        self.batch = batch
        self._freqs = freqs
        self._window_size = window_size
        self._rotations: dict[int, Rotation] = {}
        self._blocks: dict[int, tuple[compressor.Blocks, torch.Tensor, Rotation]] = {}
        self._all_visible: dict[int, torch.Tensor] = {}

    @cached_property
    def write_slots(self) -> torch.Tensor:
        """[T] where each token's own window record goes."""
        return self.batch.slots(self.batch.positions, 0)

    @cached_property
    def window_slots(self) -> torch.Tensor:
        """[T, window] slots of positions p-window+1 .. p, -1 before the request's beginning."""
        back = torch.arange(1 - self._window_size, 1)
        return self.batch.slots(self.batch.positions.unsqueeze(-1) + back, 0)

    def rotation(self, ratio: int) -> Rotation:
        """(cos, sin) [T, 32] at the tokens' positions, for layers of `ratio`."""
        key = 0 if ratio == 0 else 1
        if key not in self._rotations:
            self._rotations[key] = rope.tables(self.batch.positions, self._freqs.of(ratio))
        return self._rotations[key]

    def blocks(self, ratio: int) -> tuple[compressor.Blocks, torch.Tensor, Rotation]:
        """Completed blocks, the slots of their entries, and the rotation at each block's first token."""
        if ratio not in self._blocks:
            batch = self.batch
            blocks = compressor.completed_blocks(
                ratio, batch.positions, batch.rows, batch.starts, batch.state_slots
            )
            kept = blocks.tail_slot >= 0  # padding leaves no row behind
            blocks = replace(
                blocks, tail=blocks.tail[kept], tail_slot=blocks.tail_slot[kept], tail_row=blocks.tail_row[kept]
            )
            slots = batch.slots(blocks.entry, ratio, blocks.token)
            self._blocks[ratio] = (blocks, slots, rope.tables(blocks.entry * ratio, self._freqs.of(ratio)))
        return self._blocks[ratio]

    def visible(self, ratio: int) -> torch.Tensor:
        """[T] how many compressed entries each token may attend: floor((p + 1) / ratio)."""
        return (self.batch.positions + 1) // ratio
