"""A sum over a token's experts that is not taken yet: whoever reads it next takes it, and saves a launch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from wellhead.ops.card import launch
from wellhead.ops.checks import expect

BLOCK = 1024  # channels of a program


@dataclass(frozen=True)
class Addends:
    """y[t] = bf16(sum over k of rows[t K + k] where first <= ids[t, k] < first + count, + last[t]), in order in fp32.

    rows bf16 or fp32 [T K, d], ids i32 [T, K], last bf16 [T, d]. A row whose id is outside, -1 included, is not read.
    `by_kernel`: another launch may add them up on its way, instead of `add_up`.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    first: int
    count: int
    last: torch.Tensor
    by_kernel: ClassVar[bool] = True

    def check(self) -> None:
        """ValueError unless the shapes fit each other."""
        tokens, d = self.last.shape
        expect("ids", self.ids, (tokens, self.ids.shape[-1]), torch.int32)
        expect("rows", self.rows, (self.ids.numel(), d), torch.bfloat16, torch.float32)
        expect("last", self.last, (tokens, d), torch.bfloat16)

    def to(self, device: torch.device | str) -> Addends:
        """The same on a device."""
        return replace(self, rows=self.rows.to(device), ids=self.ids.to(device), last=self.last.to(device))

    def total(self) -> torch.Tensor:
        """y, in torch."""
        mine = (self.ids >= self.first) & (self.ids < self.first + self.count)
        rows = self.rows.unflatten(0, self.ids.shape).float()
        y = torch.zeros_like(self.last, dtype=torch.float32)
        for place in range(self.ids.shape[1]):
            y += torch.where(mine[:, place, None], rows[:, place], 0.0)
        return (y + self.last.float()).to(self.last.dtype)

    def add_up(self, out: torch.Tensor) -> None:
        """y into out bf16 [T, d], one launch; T may be 0."""
        from wellhead.ops.addend_kernels import add_up_kernel

        self.check()
        tokens, d = self.last.shape
        expect("out", out, (tokens, d), torch.bfloat16)
        if tokens:
            add_up_kernel[(tokens, -(-d // BLOCK))](
                self.rows, self.ids, self.last, out, d, self.first, self.count,
                PLACES=self.ids.shape[1], BLOCK=BLOCK, num_warps=4, **launch(),
            )  # fmt: skip
