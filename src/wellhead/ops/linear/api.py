"""Block-FP8 linear layers as a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.card import launch
from wellhead.ops.checks import expect
from wellhead.ops.linear.configs import Config, choose_config
from wellhead.ops.linear.large_configs import SMALL_TOKENS, LargeConfig, choose_large


@dataclass(frozen=True)
class BlockFp8Linear:
    """y = bf16(sum over 128-blocks b of (sum_i a_i w_i in fp32) s_a[b] s_w[row block, b]).

    run(x, x_scale, weight E4M3 [N, K], scale u8 [ceil(N/128), K/128], out bf16 [T, N]): x is E4M3 [T, K] with x_scale
    u8 [T, K/128], or bf16 [T, K] with x_scale None, which is rounded on the way in exactly as
    `formats.block_fp8.quantize_rows` does. T may be 0. One launch; allocates and synchronises nothing. A row's bits do
    not depend on the other rows as long as the number of rows stays within one power of two. More than 64 rows should
    come as E4M3: bf16 rows then run through the kernel for few tokens, which reads the weight once per 64 of them and
    counts their elements in 32 bits.
    """

    n: int
    k: int

    def run(
        self,
        x: torch.Tensor,
        x_scale: torch.Tensor | None,
        weight: torch.Tensor,
        scale: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        from wellhead.ops.linear import kernels

        tokens = x.shape[0]
        expect("x", x, (tokens, self.k), torch.bfloat16 if x_scale is None else torch.float8_e4m3fn)
        if x_scale is not None:
            expect("x_scale", x_scale, (tokens, self.k // 128), torch.uint8)
        expect("weight", weight, (self.n, self.k), torch.float8_e4m3fn)
        expect("scale", scale, (-(-self.n // 128), self.k // 128), torch.uint8)
        expect("out", out, (tokens, self.n), torch.bfloat16)
        if not tokens:
            return
        if tokens > SMALL_TOKENS and x_scale is not None:
            from wellhead.ops.linear.large_kernels import large_kernel

            large = choose_large(tokens, self.n)
            tiles = -(-tokens // large.tokens) * -(-self.n // large.rows)
            large_kernel[(tiles,)](
                x.view(torch.uint8), x_scale, weight.view(torch.uint8), scale, out, tokens, self.n, self.k,
                **large_constants(large), num_warps=large.num_warps, num_stages=large.num_stages, **launch(),
            )  # fmt: skip
            return
        if tokens * self.k >= 1 << 31:
            raise ValueError(f"x has {tokens} bf16 rows of {self.k}: below 2^31 elements; more as E4M3 with x_scale")
        config = choose_config(tokens, self.n, self.k, rounds=x_scale is None)
        codes = x if x_scale is None else x.view(torch.uint8)
        given = (codes, x_scale, weight.view(torch.uint8), scale, out)
        shape = constants(config, x_scale is None)
        blocks = -(-self.n // config.rows)
        if config.gemv:
            kernels.fp8_gemv_kernel[(blocks,)](*given, self.n, self.k, **shape, num_warps=config.num_warps, **launch())
        else:
            kernels.few_kernel[(blocks, -(-tokens // config.tokens))](
                *given, tokens, self.n, self.k, **shape, num_warps=config.num_warps, **launch()
            )


def constants(config: Config, rounds: bool) -> dict[str, int | bool]:
    """The constexpr arguments of a configuration's kernel."""
    if config.gemv:
        return {"BN": config.rows, "KC": config.inputs, "ROUND": rounds}
    return {"M": config.tokens, "BN": config.rows, "ROUND": rounds, "STAGES": config.num_stages}


def large_constants(config: LargeConfig) -> dict[str, int]:
    """The constexpr arguments of the kernel for many tokens."""
    return {"BM": config.tokens, "BN": config.rows, "GROUP": config.group}


def supports(n: int, k: int) -> str | None:
    """None, or why a product of that size cannot run."""
    if k < 128 or k % 128:
        return f"k={k}: a multiple of 128"
    return None if n >= 1 else f"n={n}: at least 1"


def plan(n: int, k: int) -> BlockFp8Linear:
    """ValueError names what is supported."""
    why = supports(n, k)
    if why is not None:
        raise ValueError(f"block-FP8 linear cannot be planned: {why}")
    return BlockFp8Linear(n, k)
