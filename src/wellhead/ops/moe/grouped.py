"""What plans over expert lists share: tiles, workspaces, the checks of a run and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops import scratch
from wellhead.ops.addends import Addends
from wellhead.ops.checks import expect
from wellhead.ops.moe.configs import LEAST, UNIT, Config
from wellhead.ops.moe.packed import PackedWeights
from wellhead.ops.routing.api import ExpertLists


@dataclass(frozen=True)
class Tiles:
    """`group` slots of one expert meet `rows` gate and up rows, or `down_rows` rows of w2, `inputs` at a step."""

    group: int
    rows: int
    down_rows: int
    inputs: int
    num_warps: int
    down_warps: int
    num_stages: int


@dataclass(frozen=True)
class Grouped:
    """Sizes, tiles and workspaces. `hidden` is bf16, or E4M3 where `hidden_scale` holds a byte per 128 channels, but in
    plans for few tokens, which have its codes beside it.
    """

    tokens: int
    d: int
    m: int
    experts: int
    top_k: int
    limit: float
    config: Tiles | Config
    hidden: torch.Tensor  # [tokens * K, m]
    hidden_scale: torch.Tensor | None  # u8 [tokens * K, m / 128]
    each: torch.Tensor  # bf16 [tokens * K, d]

    def addends(
        self, tokens: int, ids: torch.Tensor, weights: torch.Tensor, lists: ExpertLists, shared: torch.Tensor
    ) -> Addends:
        """What a run leaves: each expert's rows, to be added up with `shared`.

        ValueError unless everything that does not depend on the format of weights and activations fits.
        """
        if tokens > self.tokens:
            raise ValueError(f"x has {tokens} tokens; the plan was made for at most {self.tokens}")
        group, experts = self.config.group, self.experts
        if lists.block != group or lists.experts != experts:
            raise ValueError(
                f"lists are blocks of {lists.block} of {lists.experts} experts; this plan reads {group} of {experts}"
            )
        expect("ids", ids, (tokens, self.top_k), torch.int32)
        expect("weights", weights, (tokens, self.top_k), torch.float32)
        expect("shared", shared, (tokens, self.d), torch.bfloat16)
        return Addends(self.each[: tokens * self.top_k], ids, lists.first_expert, experts, shared)


def check_mxfp4(packed: PackedWeights, experts: int, d: int, m: int) -> None:
    """ValueError unless these are MXFP4 experts of that number and size."""
    expect("w13", packed.w13, (experts, 2 * m, d // 2), torch.uint8)
    expect("s13", packed.s13, (experts, 2 * m, d // 32), torch.uint8)
    expect("w2", packed.w2, (experts, d, m // 2), torch.uint8)
    expect("s2", packed.s2, (experts, d, m // 32), torch.uint8)


def supports(d: int, m: int) -> str | None:
    """None, or why experts of that size cannot run."""
    for name, value in (("d", d), ("m", m)):
        if value < LEAST or value % UNIT:
            return f"{name}={value}: a multiple of {UNIT} from {LEAST} on"
    return None


def refusal(tokens: int, d: int, m: int, top_k: int) -> str | None:
    """None, or why so many cannot run in blocks of slots."""
    if (why := supports(d, m)) is not None:
        return why
    if tokens < 0 or tokens * top_k * max(d, m) >= 1 << 38:
        return f"tokens={tokens}, top_k={top_k}: below 2^38 / {max(d, m)} slots, so that 32 bits reach each scale"
    return None


def workspaces(
    tokens: int, d: int, m: int, top_k: int, rounded: bool, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(hidden, hidden_scale, each) of a plan; `rounded` keeps the hidden vector as E4M3."""
    slots = tokens * top_k
    hidden = scratch.empty(slots, m, dtype=torch.float8_e4m3fn if rounded else torch.bfloat16, device=device)
    scale = scratch.empty(slots, m // 128, dtype=torch.uint8, device=device) if rounded else None
    return hidden, scale, scratch.empty(slots, d, dtype=torch.bfloat16, device=device)
