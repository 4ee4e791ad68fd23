"""Whether what an implementation computed lies within its op's budget of what the reference computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from wellhead.dispatch.spec import ErrorBudget


@dataclass(frozen=True)
class Agreement:
    """outside of total values lie outside the budget; error is the largest relative error of a result, in norm."""

    outside: int
    total: int
    error: float

    def __bool__(self) -> bool:
        return self.outside == 0


def results(run: Any) -> tuple[torch.Tensor, ...]:
    """What run() returns, one tensor or several, copied to the CPU."""
    made = run()
    return tuple(value.cpu().clone() for value in (made if isinstance(made, tuple) else (made,)))


def compare(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], budget: ErrorBudget) -> Agreement:
    """NaN agrees with nothing; infinities of one sign agree; integers are compared exactly where the budget is 0."""
    outside = total = 0
    error = 0.0
    for left, right in zip(found, expected, strict=True):
        if left.shape != right.shape:
            raise ValueError(f"shapes {tuple(left.shape)} and {tuple(right.shape)} differ")
        a, b = left.double(), right.double()
        same = a == b
        apart = (a - b).abs().masked_fill(same, 0.0)
        inside = same | (apart <= budget.absolute + budget.relative * b.abs())
        outside, total = outside + int((~inside).sum()), total + inside.numel()
        finite = b.isfinite()
        error = max(error, float(apart[finite].norm() / b[finite].norm().clamp_min(1e-30)))
    return Agreement(outside, total, error)
