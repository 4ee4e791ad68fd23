"""The compressor over chunks as a plan: entries of finished blocks in one launch, the running state in a second."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats.paged import PagedLayout
from wellhead.ops.card import launch
from wellhead.ops.checks import expect
from wellhead.ops.compressor.api import check_out, check_plan, constants
from wellhead.ops.compressor.configs import PrefillConfig, choose_prefill_config
from wellhead.ops.compressor.reference import overlap, ring_rows

INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Prefill:
    """`reference.advance`, RMS norm and rotation for T tokens of several requests, each bringing any number of them.

    run(projected fp32 [T, 2W], ape fp32 [ratio, W], positions [T], state_slots [T], firsts [T], state fp32 [slots,
    ring, 2W], norm bf16 or fp32 [D], ends [E], cos, sin fp32 [E, 32], slots int64 [E], out). W = overlap * D;
    `projected`, ape, state and norm are as in `api.Decode`.

    What the scheduler says of the batch, int32 or int64 on the device, shared by all layers of a ratio:
      positions    position of each token in its request. A request's tokens are neighbours, their positions ascend by
                   one from any start; what precedes them is in the request's ring.
      state_slots  state slot of each token's request, distinct between requests; -1 for padding, which changes nothing.
      firsts       index in this batch of the first token of each token's request; not read for padding.
      ends         index in this batch of the last token of each block that ends here, in any order; -1 fills the list.
                   An index of padding, or of a token inside a block, counts as -1.
    E is the length of `ends`; cos and sin belong to the first position of each block, slots say where its record goes.

    Entry e goes to slots[e] (-1: nowhere) of `out`, the records or index keys of decode, rounded as there. Entries are
    computed from the state before this batch, then the rings take the batch's last rows. Allocates, synchronises and
    reads nothing of the device.
    """

    ratio: int
    dim: int
    eps: float
    page_size: int
    keys: PagedLayout | None
    config: PrefillConfig

    def run(
        self,
        projected: torch.Tensor,
        ape: torch.Tensor,
        positions: torch.Tensor,
        state_slots: torch.Tensor,
        firsts: torch.Tensor,
        state: torch.Tensor,
        norm: torch.Tensor,
        ends: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slots: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        from wellhead.ops.compressor.prefill_kernels import entries_kernel, keep_kernel

        tokens, count, c = projected.shape[0], ends.shape[0], self.config
        width = overlap(self.ratio) * self.dim
        expect("projected", projected, (tokens, 2 * width), torch.float32)
        expect("ape", ape, (self.ratio, width), torch.float32)
        for name, value in (("positions", positions), ("state_slots", state_slots), ("firsts", firsts)):
            expect(name, value, (tokens,), *INTEGERS)
        expect("state", state, (state.shape[0], ring_rows(self.ratio), 2 * width), torch.float32)
        expect("norm", norm, (self.dim,), torch.bfloat16, torch.float32)
        expect("ends", ends, (count,), *INTEGERS)
        expect("cos", cos, (count, 32), torch.float32)
        expect("sin", sin, (count, 32), torch.float32)
        expect("slots", slots, (count,), torch.int64)
        out = check_out(out, self.page_size, self.keys)
        if tokens and count:
            entries_kernel[(count,)](
                projected, ape, positions, state_slots, firsts, state, norm, ends, cos, sin, slots, out,
                self.eps, out.stride(0), **constants(self.ratio, self.dim, self.page_size, self.keys, c.rows),
                num_warps=c.num_warps, num_stages=c.num_stages, **launch(),
            )  # fmt: skip
        if tokens:
            keep_kernel[(-(-tokens // c.tokens), 2 * width // c.columns)](
                projected, ape, positions, state_slots, state, tokens, **keep_constants(self.ratio, self.dim, c),
                num_warps=c.keep_warps, num_stages=c.num_stages, **launch(),
            )  # fmt: skip


def keep_constants(ratio: int, dim: int, config: PrefillConfig) -> dict[str, int]:
    width, ring = overlap(ratio) * dim, ring_rows(ratio)
    return {"WIDTH": width, "RATIO": ratio, "RING": ring, "BT": config.tokens, "BC": config.columns}


def plan_prefill(ratio: int, dim: int, eps: float, *, page_size: int = 0, keys: PagedLayout | None = None) -> Prefill:
    """Plan for any number of tokens and requests; needs no workspace. Gives what `plan_decode` with these does."""
    check_plan(ratio, dim, page_size, keys)
    return Prefill(ratio, dim, eps, page_size, keys, choose_prefill_config(ratio, dim))
