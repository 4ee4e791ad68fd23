"""A row's bits and its neighbours: every op's small case with other rows beside one, and that row alone.

Run by test_interpreter.py, or natively where there is a card.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kernels.small import SMALL
from wellhead.ops import registry
from wellhead.testing.agreement import results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, ROW = 3, 1  # of the small cases, and the row that is looked at
SHARED = {"hyper_connection": {"scale"}, "addresses": {"page_table", "window_table"}}  # three of them, not one a token
OPS = registry.specs()
INVARIANT = [spec for spec in OPS if spec.batch_invariant]  # the others' reasons are in docs/ops.md


def with_rows(op: str, rows: Sequence[int]) -> dict[str, Any]:
    """The op's small case with these rows in place of its own; caches, tables and weights are everybody's and stay."""
    inputs = SMALL[op](torch.Generator(DEVICE).manual_seed(1), DEVICE)
    of_tokens = {
        name for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.dim() and len(value) == TOKENS and name not in SHARED.get(op, ())
    }  # fmt: skip
    assert of_tokens
    return {name: value[list(rows)] if name in of_tokens else value for name, value in inputs.items()}


def rows_of(spec: Any, rows: Sequence[int]) -> list[torch.Tensor]:
    """What the kernels make of every token, as bytes; a result has as many rows, or that of a plan's buffer more."""
    found = results(spec.impl("triton").prepare(with_rows(spec.name, rows)))
    assert all(len(value) >= len(rows) for value in found)
    return [value[: len(rows)].reshape(len(rows), -1).contiguous().view(torch.uint8) for value in found]


@pytest.mark.parametrize("spec", OPS, ids=[spec.name for spec in OPS])
def test_other_neighbours_change_no_bit_of_a_row(spec: Any) -> None:
    among, beside_itself = rows_of(spec, range(TOKENS)), rows_of(spec, [ROW] * TOKENS)
    for first, second in zip(among, beside_itself, strict=True):
        assert all(torch.equal(first[ROW], row) for row in second)


@pytest.mark.parametrize("spec", INVARIANT, ids=[spec.name for spec in INVARIANT])
def test_a_row_alone_has_the_bits_it_has_among_others(spec: Any) -> None:
    for first, second in zip(rows_of(spec, range(TOKENS)), rows_of(spec, [ROW]), strict=True):
        assert torch.equal(first[ROW], second[0])
