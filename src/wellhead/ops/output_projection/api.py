"""Grouped output projection of attention heads as a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.card import launch
from wellhead.ops.checks import expect
from wellhead.ops.output_projection.configs import FEW_TOKENS, Config, choose_config

HEAD = 512
HEADS_A_GROUP = (1, 2, 4, 8)


@dataclass(frozen=True)
class OutputProjection:
    """z[t, g] = bf16(W_g o[t, heads of group g]); o comes turned back, by `ops.sparse_mla` or by `ops.rope`.

    run(o bf16 [T, H, 512], weight E4M3 [G N, K] of K = H/G 512, scale u8 [G N/128, K/128], z bf16 [T, G N]). Group g
    takes heads g H/G .. (g + 1) H/G - 1. o is not rounded to E4M3; the weight is exact; sums are fp32.

    Beyond 256 tokens z may be E4M3 with z_scale u8 [T, G N/128]: bit for bit `formats.block_fp8.quantize_rows` of the
    bf16 z. T may be 0. Allocates and synchronises nothing. A row's bits do not depend on the other rows as long as the
    number of rows stays within one power of two.
    """

    heads: int
    groups: int
    n: int

    def run(
        self,
        o: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        z: torch.Tensor,
        z_scale: torch.Tensor | None = None,
    ) -> None:
        from wellhead.ops.output_projection import kernels

        tokens, width, per_group = o.shape[0], self.groups * self.n, self.heads // self.groups
        rounds = z_scale is not None
        if rounds and 0 < tokens <= FEW_TOKENS:
            raise ValueError(
                f"{tokens} tokens, z with a scale; expected a bf16 z without one for up to {FEW_TOKENS} tokens"
            )
        expect("o", o, (tokens, self.heads, HEAD), torch.bfloat16)
        expect("weight", weight, (width, per_group * HEAD), torch.float8_e4m3fn)
        expect("scale", scale, (width // 128, per_group * HEAD // 128), torch.uint8)
        expect("z", z, (tokens, width), torch.float8_e4m3fn if rounds else torch.bfloat16)
        if z_scale is not None:
            expect("z_scale", z_scale, (tokens, width // 128), torch.uint8)
        if not tokens:
            return
        config, codes = choose_config(tokens), weight.view(torch.uint8)
        given, tiles = constants(config, per_group, rounds), self.n // config.rows
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **launch()}
        if config.gemv:
            kernels.grouped_gemv_kernel[(tiles, self.groups)](
                o, codes, scale, z, tokens, self.n, **given, **options
            )
            return
        grid = (tiles, -(-tokens // config.tokens), self.groups)
        kernels.tile_kernel[grid](
            o, codes, scale, z.view(torch.uint8) if rounds else z, z_scale, tokens, self.n, **given, **options
        )


def constants(config: Config, per_group: int, rounds: bool) -> dict[str, int | bool]:
    """The constexpr arguments of a configuration's kernel."""
    if config.gemv:
        return {"M": config.tokens, "P": per_group, "BN": config.rows}
    return {"P": per_group, "BN": config.rows, "BT": config.tokens, "ROUND": rounds}


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
