"""Products, norms and rotations in torch, behind the plans of their kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats import block_fp8
from wellhead.ops.linear import reference as linear
from wellhead.ops.moe import layout
from wellhead.ops.norm_quant import reference as norm_quant
from wellhead.ops.output_projection import reference as output_projection
from wellhead.ops.rope import reference as rope

Maybe = torch.Tensor | None


def wide(x: torch.Tensor, scale: Maybe) -> torch.Tensor:
    """fp32 of what a product sees: rounded rows as they are, bf16 ones (no scale) rounded."""
    return block_fp8.dequantize_rows(x, scale) if scale is not None else linear.round_input(x).float()


@dataclass(frozen=True)
class Linear:
    n: int
    k: int

    def run(
        self, x: torch.Tensor, x_scale: Maybe, weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
    ) -> None:
        out.copy_(linear.product(wide(x, x_scale), block_fp8.dequantize_weight(weight, scale)))


@dataclass(frozen=True)
class Bf16Linear:
    parts: int | tuple[int, ...]
    k: int

    def run(self, x: torch.Tensor, weight: torch.Tensor, *out: torch.Tensor) -> None:
        found = linear.product(x, weight).split([y.shape[1] for y in out], dim=1)
        for y, part in zip(out, found, strict=True):
            y.copy_(part)


@dataclass(frozen=True)
class NormQuant:
    d: int
    eps: float

    def run(
        self, x: torch.Tensor, weight: Maybe, codes: Maybe, scale: torch.Tensor, normed: Maybe = None,
        halves: Maybe = None,
    ) -> None:  # fmt: skip
        row = x if weight is None else norm_quant.rms_norm(x, weight, self.eps)
        rounded, exponents = block_fp8.quantize_rows(row)
        scale.copy_(exponents)
        if codes is not None:
            codes.copy_(rounded)
        if halves is not None:
            halves.copy_(layout.halves(rounded))
        if normed is not None:
            normed.copy_(row)


@dataclass(frozen=True)
class Rope:
    heads: int
    dim: int = 512
    inverse: bool = False

    def run(self, x: torch.Tensor, positions: torch.Tensor, freqs: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(rope.apply(x, positions, freqs, inverse=self.inverse))


@dataclass(frozen=True)
class OutputProjection:
    heads: int
    groups: int
    n: int

    def run(
        self, o: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, z: torch.Tensor, z_scale: Maybe = None
    ) -> None:
        dense = block_fp8.dequantize_weight(weight, scale).unflatten(0, (self.groups, self.n))
        found = output_projection.project(o, dense)
        if z_scale is None:
            z.copy_(found.flatten(1))
            return
        codes, exponents = block_fp8.quantize_rows(found.flatten(1))
        z.copy_(codes)
        z_scale.copy_(exponents)
