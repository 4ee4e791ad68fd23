"""Products with bf16 weights as a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.bf16_linear.configs import Config, choose_config
from wellhead.ops.card import launch
from wellhead.ops.checks import expect, row_stride

MOST_PARTS = 3
WHOLE = 128  # rows of the widest tile: every part but the last is a multiple of it


@dataclass(frozen=True)
class Bf16Linear:
    """y_i = x W_i^T for up to three matrices that lie behind each other, exact products summed in fp32.

    run(x bf16 [T, K], weight bf16 [sum N_i, K], y_0 [T, N_0], y_1, ..), each y fp32 or bf16; rows of x may lie further
    apart. T may be 0. One launch; allocates and synchronises nothing. A row's bits do not depend on the other rows as
    long as the number of rows stays within one power of two.
    """

    parts: tuple[int, ...]
    k: int

    @property
    def n(self) -> int:
        return sum(self.parts)

    def run(self, x: torch.Tensor, weight: torch.Tensor, *out: torch.Tensor) -> None:
        from wellhead.ops.bf16_linear.kernels import bf16_gemv_kernel, product_kernel

        tokens = x.shape[0]
        stride = row_stride("x", x, self.k, torch.bfloat16)
        expect("weight", weight, (self.n, self.k), torch.bfloat16)
        if len(out) != len(self.parts):
            raise ValueError(f"{len(out)} outputs for a product planned with parts of {list(self.parts)} rows")
        for each, part in zip(out, self.parts, strict=True):
            expect("out", each, (tokens, part), torch.float32, torch.bfloat16)
        if not tokens:
            return
        config = choose_config(tokens, self.n, self.k)
        y = (*out, *[out[-1]] * (MOST_PARTS - len(out)))
        ends = self.parts[0], sum(self.parts[:2]), self.n
        grid, given = -(-self.n // config.rows), {**constants(config), "num_warps": config.num_warps, **launch()}
        if config.gemv:
            bf16_gemv_kernel[(grid,)](x, weight, *y, *ends, self.k, **given)
        else:
            product_kernel[(grid, -(-tokens // config.tokens))](x, weight, *y, tokens, *ends, self.k, stride, **given)


def constants(config: Config) -> dict[str, int]:
    """The constexpr arguments."""
    if config.gemv:
        return {"BN": config.rows, "KC": config.inputs}
    return {"M": config.tokens, "BN": config.rows, "KC": config.inputs, "STAGES": config.num_stages}


def supports(n: int, k: int) -> str | None:
    """None, or why a product of that size cannot run."""
    if k < 128 or k % 128:
        return f"k={k}: a multiple of 128"
    return None if n >= 1 else f"n={n}: at least 1"


def plan(n: int | tuple[int, ...], k: int) -> Bf16Linear:
    """One matrix of n rows, or several. ValueError names what is supported."""
    parts = (n,) if isinstance(n, int) else n
    why = next((why for part in parts if (why := supports(part, k)) is not None), None)
    if not 1 <= len(parts) <= MOST_PARTS or any(part % WHOLE for part in parts[:-1]):
        why = f"parts={list(parts)}: one to {MOST_PARTS}, all but the last a multiple of {WHOLE}"
    if why is not None:
        raise ValueError(f"bf16 linear cannot be planned: {why}")
    return Bf16Linear(parts, k)
