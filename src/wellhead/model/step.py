"""Index arithmetic and rotation tables of one forward step, computed once and shared by all layers."""

from __future__ import annotations

from dataclasses import astuple, replace
from functools import cached_property

import torch

from wellhead.model.batch import Batch
from wellhead.model.config import RATIOS, ModelConfig
from wellhead.ops.compressor import reference as compressor
from wellhead.ops.rope import reference as rope

Rotation = tuple[torch.Tensor, torch.Tensor]


def frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> dict[int, torch.Tensor]:
    """fp32 [32] by ratio: plain ones for window layers (and MTP), YaRN's for all that compress."""
    dim, yarn = config.qk_rope_head_dim, rope.Yarn(*astuple(config.rope_scaling))
    plain = rope.frequencies(dim, config.rope_theta, None).to(device)
    stretched = rope.frequencies(dim, config.compress_rope_theta, yarn).to(device)
    return {ratio: stretched if ratio else plain for ratio in RATIOS}


class Step:
    """A batch with everything its layers share. `ratio` 0 names the window and the plain rotation."""

    def __init__(self, batch: Batch, freqs: dict[int, torch.Tensor], window_size: int):
        self.batch = batch
        self._freqs = freqs
        self._window_size = window_size
        self._rotations: dict[int, Rotation] = {}
        self._blocks: dict[int, tuple[compressor.Blocks, torch.Tensor, Rotation]] = {}

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
            self._rotations[key] = rope.tables(self.batch.positions, self._freqs[ratio])
        return self._rotations[key]

    def blocks(self, ratio: int) -> tuple[compressor.Blocks, torch.Tensor, Rotation]:
        """Completed blocks, the slots of their entries, and the rotation at each block's first token."""
        if ratio not in self._blocks:
            batch = self.batch
            blocks = compressor.completed_blocks(ratio, batch.positions, batch.rows, batch.starts, batch.state_slots)
            kept = blocks.tail_slot >= 0  # padding leaves no row behind
            blocks = replace(
                blocks, tail=blocks.tail[kept], tail_slot=blocks.tail_slot[kept], tail_row=blocks.tail_row[kept]
            )
            slots = batch.slots(blocks.entry, ratio, blocks.token)
            self._blocks[ratio] = (blocks, slots, rope.tables(blocks.entry * ratio, self._freqs[ratio]))
        return self._blocks[ratio]

    def visible(self, ratio: int) -> torch.Tensor:
        """[T] how many compressed entries each token may attend: floor((p + 1) / ratio)."""
        return (self.batch.positions + 1) // ratio
