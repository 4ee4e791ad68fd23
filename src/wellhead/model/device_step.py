"""One step's inputs on the device, in buffers that stay where they are, and the addresses that its layers share.

Everything here is arithmetic of device tensors: nothing is read back, so a captured step replays with other contents.
A padding token has state slot -1: it gets no slots, is visible to nobody and sees nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from wellhead.model.batch import Batch
from wellhead.model.config import KIND_OF_RATIO, ModelConfig
from wellhead.model.state import PAGE_TOKENS, records_per_page
from wellhead.model.step import Frequencies
from wellhead.ops.rope.reference import tables


@dataclass(frozen=True)
class StepInputs:
    """T tokens of R requests; a request's tokens are neighbours. All on the device.

    token_ids, positions int64 [T]; rows int32 [T] (which request); state_slots int64 [T], -1 for padding; page_table
    and window_table int32 [R, P] of logical pages and of those of the window, -1 where there is none. In a prefill also
    firsts int32 [T], the index of the first token of each token's request, and by ratio ends int32 [E], the indices of
    the last tokens of blocks that end here (-1 fills); a decode, one token a request, has neither.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    state_slots: torch.Tensor
    page_table: torch.Tensor
    window_table: torch.Tensor
    firsts: torch.Tensor | None = None
    ends: dict[int, torch.Tensor] | None = None

    @classmethod
    def of(cls, batch: Batch, device: torch.device | str, *, chunked: bool) -> StepInputs:
        """A batch laid out on the host, copied; `chunked` for a prefill, otherwise one token a request."""
        firsts = ends = None
        if chunked:
            firsts = batch.starts[batch.rows].to(device, torch.int32)
            ends = {
                ratio: ((batch.positions + 1) % ratio == 0).nonzero().flatten().to(device, torch.int32)
                for ratio in (4, 128)
            }
        elif len(batch.positions) != len(batch.state_slots):
            raise ValueError(
                f"{len(batch.positions)} tokens of {len(batch.state_slots)} requests; a decode has one each"
            )
        return cls(
            batch.token_ids.to(device),
            batch.positions.to(device),
            batch.rows.to(device, torch.int32),
            batch.state_slots[batch.rows].to(device),
            batch.page_table.to(device, torch.int32),
            batch.window_table.to(device, torch.int32),
            firsts,
            ends,
        )


    def only(self, at: torch.Tensor) -> StepInputs:
        """The tokens at the indices int64 [n] alone, at most one of a request, as a decode."""
        return replace(
            self, token_ids=self.token_ids[at], positions=self.positions[at], rows=self.rows[at],
            state_slots=self.state_slots[at], firsts=None, ends=None,
        )  # fmt: skip


@dataclass(frozen=True)
class Compressed:
    """Addresses of one ratio. entry_slots int64 [E] where the entries that end here go (-1: nowhere), with the rotation
    (cos, sin fp32 [E, 32]) at each one's first token; E is T in a decode. visible int32 [T]: entries a token may
    attend. slots int64 [T, W] of all visible entries, ratio 128 only.
    """

    entry_slots: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    visible: torch.Tensor
    slots: torch.Tensor | None


class DeviceStep:
    """What `StepInputs` mean to the layers of one model, of all its ratios unless told; window_slots int64 [T, window],
    -1 before the beginning.
    """

    def __init__(
        self, inputs: StepInputs, config: ModelConfig, freqs: dict[int, torch.Tensor],
        ratios: Sequence[int] | None = None,
    ):  # fmt: skip
        self.inputs, self._freqs = inputs, freqs
        positions, device = inputs.positions, inputs.positions.device
        self.tokens = positions.shape[0]
        self.real = inputs.state_slots >= 0
        self.tables = inputs.page_table.index_select(0, inputs.rows)  # [T, P]
        self._window_tables = inputs.window_table.index_select(0, inputs.rows)
        back = torch.arange(1 - config.sliding_window, 1, device=device)
        self.write_slots = self._slots(positions.unsqueeze(1), 0).squeeze(1)
        self.window_slots = self._slots(positions.unsqueeze(1) + back, 0)
        self.window_length = torch.full((self.tokens,), config.sliding_window, dtype=torch.int32, device=device)
        compressing = set(config.compress_ratios if ratios is None else ratios) - {0}
        self.of_ratio = {ratio: self._compressed(ratio) for ratio in sorted(compressing)}

    def freqs(self, ratio: int) -> torch.Tensor:
        """fp32 [32] of the layers of that ratio."""
        return self._freqs[ratio]

    def _slots(self, entries: torch.Tensor, ratio: int) -> torch.Tensor:
        """int64 slots of entries [T, n] of each token's request; -1 for a negative entry, a missing page, padding."""
        size, tables = records_per_page(ratio), self.tables if ratio else self._window_tables
        place = entries.clamp_min(0)
        last = tables.shape[1] - 1
        page = tables.gather(1, (place // size).clamp_max(last)).to(torch.int64)
        there = (entries >= 0) & (place // size <= last) & (page >= 0) & self.real.unsqueeze(1)
        return torch.where(there, page * size + place % size, -1)

    def _compressed(self, ratio: int) -> Compressed:
        inputs, device = self.inputs, self.inputs.positions.device
        visible = torch.where(self.real, (inputs.positions + 1) // ratio, 0)
        entry = torch.where((inputs.positions + 1) % ratio == 0, inputs.positions // ratio, -1)
        entry_slots = self._slots(entry.unsqueeze(1), ratio).squeeze(1)
        if inputs.ends is not None:
            ends = inputs.ends[ratio].to(torch.int64)
            known = ends.clamp_min(0)
            entry_slots = torch.where(ends >= 0, entry_slots[known], -1)
            entry = entry[known]
        cos, sin = tables(entry.clamp_min(0) * ratio, self._freqs[ratio])
        slots = None
        if ratio != 4:
            count = self.tables.shape[1] * records_per_page(ratio)
            entries = torch.arange(-(-count // 16) * 16, device=device).expand(self.tokens, -1)
            slots = self._slots(torch.where(entries < visible.unsqueeze(1), entries, -1), ratio)
        return Compressed(entry_slots, cos, sin, visible.to(torch.int32), slots)


def frequencies(config: ModelConfig, device: torch.device | str) -> dict[int, torch.Tensor]:
    """fp32 [32] by ratio."""
    known = Frequencies(config)
    return {ratio: known.of(ratio).to(device) for ratio in KIND_OF_RATIO}


def context_pages(tokens: int) -> int:
    """Width of a page table for contexts of that many tokens."""
    return -(-tokens // PAGE_TOKENS)
