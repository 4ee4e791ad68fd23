"""Products with bf16 weights as a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.bf16_linear.configs import Config, choose_config
from wellhead.ops.checks import expect, row_stride
from wellhead.ops.overlap import launch


@dataclass(frozen=True)
class Bf16Linear:
    """y = x W^T, exact products summed in fp32.

    run(x bf16 [T, K], weight bf16 [N, K], out fp32 or bf16 [T, N]); rows of x may lie further apart. T may be 0. One
    launch; allocates and synchronises nothing. A row's bits do not depend on the other rows as long as the number of
    rows stays within one power of two.
    """

    n: int
    k: int

    def run(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        from wellhead.ops.bf16_linear.kernels import product_kernel

        tokens = x.shape[0]
        stride = row_stride("x", x, self.k, torch.bfloat16)
        expect("weight", weight, (self.n, self.k), torch.bfloat16)
        expect("out", out, (tokens, self.n), torch.float32, torch.bfloat16)
        if tokens:
            config = choose_config(tokens, self.n)
            product_kernel[(-(-self.n // config.rows), -(-tokens // config.tokens))](
                x, weight, out, tokens, self.n, self.k, stride, **constants(config), num_warps=config.num_warps,
                **launch(),
            )  # fmt: skip


def constants(config: Config) -> dict[str, int]:
    """The constexpr arguments."""
    return {"M": config.tokens, "BN": config.rows, "STAGES": config.num_stages}


def supports(n: int, k: int) -> str | None:
    """None, or why a product of that size cannot run."""
    if k < 128 or k % 128:
        return f"k={k}: a multiple of 128"
    return None if n >= 1 else f"n={n}: at least 1"


def plan(n: int, k: int) -> Bf16Linear:
    """ValueError names what is supported."""
    why = supports(n, k)
    if why is not None:
        raise ValueError(f"bf16 linear cannot be planned: {why}")
    return Bf16Linear(n, k)
