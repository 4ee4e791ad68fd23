"""Grouped output projection of attention heads as a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.checks import expect
from wellhead.ops.output_projection.configs import FEW_TOKENS, GEMV_TOKENS, Config, choose_config
from wellhead.ops.overlap import launch

HEAD = 512
ROTATED = 64
HEADS_A_GROUP = (1, 2, 4, 8)


@dataclass(frozen=True)
class OutputProjection:
    """z[t, g] = bf16(W_g o'[t, heads of group g]), o' being o with the last 64 dims of each head turned back.

    run(o bf16 [T, H, 512], positions i64 [T], freqs fp32 [32], weight E4M3 [G N, K] of K = H/G 512, scale u8
    [G N/128, K/128], z bf16 [T, G N]). Group g takes heads g H/G .. (g + 1) H/G - 1. Angles as in `ops.rope`; o' is
    rounded once to bf16 and not to E4M3; the weight is exact; sums are fp32.

    From 3 to 64 tokens that is one launch. Otherwise (`turns` says) o comes turned, by `ops.sparse_mla` or in place by
    `ops.rope`, with None for positions and freqs. Beyond 64 z may be E4M3 with z_scale u8 [T, G N/128]: bit for bit
    `formats.block_fp8.quantize_rows` of the bf16 z.
    T may be 0. Allocates and synchronises nothing. A row's bits do not depend on the other rows as long as the number
    of rows stays within one power of two.
    """

    heads: int
    groups: int
    n: int

    @staticmethod
    def turns(tokens: int) -> bool:
        """Whether so many tokens' heads are turned on the way in, and need their positions."""
        return GEMV_TOKENS < tokens <= FEW_TOKENS

    def run(
        self,
        o: torch.Tensor,
        positions: torch.Tensor | None,
        freqs: torch.Tensor | None,
        weight: torch.Tensor,
        scale: torch.Tensor,
        z: torch.Tensor,
        z_scale: torch.Tensor | None = None,
    ) -> None:
        from wellhead.ops.output_projection import kernels

        tokens, width, per_group = o.shape[0], self.groups * self.n, self.heads // self.groups
        turns, rounds = positions is not None, z_scale is not None
        if turns != (freqs is not None):
            raise ValueError("positions and freqs: one of them is None; expected both or neither")
        if tokens and (turns != self.turns(tokens) or (rounds and tokens <= FEW_TOKENS)):
            raise ValueError(
                f"{tokens} tokens {'with' if turns else 'without'} positions, z {'with' if rounds else 'without'} a "
                f"scale; expected a bf16 z for up to {FEW_TOKENS} tokens, and positions for more than {GEMV_TOKENS} of "
                f"those, else heads that are turned already"
            )
        expect("o", o, (tokens, self.heads, HEAD), torch.bfloat16)
        if positions is not None and freqs is not None:
            expect("positions", positions, (tokens,), torch.int64)
            expect("freqs", freqs, (ROTATED // 2,), torch.float32)
        expect("weight", weight, (width, per_group * HEAD), torch.float8_e4m3fn)
        expect("scale", scale, (width // 128, per_group * HEAD // 128), torch.uint8)
        expect("z", z, (tokens, width), torch.float8_e4m3fn if rounds else torch.bfloat16)
        if z_scale is not None:
            expect("z_scale", z_scale, (tokens, width // 128), torch.uint8)
        if not tokens:
            return
        config, codes = choose_config(tokens), weight.view(torch.uint8)
        given, tiles = constants(config, per_group, turns, rounds), self.n // config.rows
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **launch()}
        if config.gemv:
            kernels.grouped_gemv_kernel[(tiles, self.groups)](
                o, codes, scale, z, tokens, self.n, **given, **options
            )
            return
        grid = (tiles, -(-tokens // config.tokens), self.groups)
        kernels.tile_kernel[grid](
            o, positions, freqs, codes, scale, z.view(torch.uint8) if rounds else z, z_scale, tokens, self.n,
            **given, **options,
        )  # fmt: skip


def constants(config: Config, per_group: int, turns: bool, rounds: bool) -> dict[str, int | bool]:
    """The constexpr arguments of a configuration's kernel."""
    if config.gemv:
        return {"M": config.tokens, "P": per_group, "BN": config.rows}
    return {"P": per_group, "BN": config.rows, "BT": config.tokens, "ROTATE": turns, "ROUND": rounds}


def supports(heads: int, groups: int, n: int) -> str | None:
    """None, or why such a projection cannot run."""
    if groups < 1 or heads % groups or heads // groups not in HEADS_A_GROUP:
        return f"heads={heads} in groups={groups}: 1, 2, 4 or 8 heads a group"
    return None if n >= 128 and n % 128 == 0 else f"n={n}: a multiple of 128"


def plan(heads: int, groups: int, n: int) -> OutputProjection:
    """ValueError names what is supported."""
    why = supports(heads, groups, n)
    if why is not None:
        raise ValueError(f"output projection cannot be planned: {why}")
    return OutputProjection(heads, groups, n)
