"""The middle of the shared expert as a plan; its products are `ops.linear`'s."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.card import launch
from wellhead.ops.checks import expect

BLOCK = 128


@dataclass(frozen=True)
class SwigluRound:
    """codes, scale = quantize_rows(bf16(silu(min(g, limit)) * clamp(u, -limit, limit))).

    run(gate_up bf16 [T, 2m], rows of the gate's product, then of up's; codes E4M3 [T, m], scale u8 [T, m/128]).
    T may be 0. One launch; allocates and synchronises nothing; a row's bits depend on that row alone.
    """

    m: int
    limit: float

    def run(self, gate_up: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> None:
        from wellhead.ops.moe.shared_kernels import swiglu_round_kernel

        tokens = gate_up.shape[0]
        expect("gate_up", gate_up, (tokens, 2 * self.m), torch.bfloat16)
        expect("codes", codes, (tokens, self.m), torch.float8_e4m3fn)
        expect("scale", scale, (tokens, self.m // 128), torch.uint8)
        if tokens:
            swiglu_round_kernel[(tokens, self.m // BLOCK)](
                gate_up, codes.view(torch.uint8), scale, self.limit, self.m, BLOCK=BLOCK, num_warps=1,
                **launch(early=True),
            )  # fmt: skip


def plan_shared(m: int, limit: float) -> SwigluRound:
    """ValueError names what is supported."""
    if m < BLOCK or m % BLOCK:
        raise ValueError(f"the shared expert cannot be planned: m={m}: a multiple of {BLOCK}")
    return SwigluRound(m, limit)
