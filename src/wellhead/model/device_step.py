"""One step's inputs on the device, in buffers that stay where they are, and the addresses that its layers share.

Everything here is arithmetic of device tensors: nothing is read back, so a captured step replays with other contents.
A padding token has state slot -1: it gets no slots, is visible to nobody and sees nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from wellhead.model.batch import Batch

if TYPE_CHECKING:
    from wellhead.model.device_workspace import Workspace


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


class DeviceStep:
    """What `StepInputs` mean to the layers of one model, in buffers of a workspace: the addresses of `ops.addresses`,
    by ratio those of compressed entries; `freqs` fp32 [32] by ratio.
    """

    def __init__(self, inputs: StepInputs, ws: Workspace, freqs: dict[int, torch.Tensor]):
        self.inputs, self.freqs = inputs, freqs
        self.tokens = inputs.positions.shape[0]
        self.window_length = ws.window_length[: self.tokens]
        whose = (inputs.positions, inputs.rows, inputs.state_slots)
        window, self.of_ratio = ws.addresses.run(*whose, inputs.page_table, inputs.window_table, freqs, inputs.ends)
        self.write_slots, self.window_slots, self.tables = window
