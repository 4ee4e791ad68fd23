"""What a request does to its logits before a token is chosen: added biases, penalties, or anything a caller brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

Adjust = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""(fp32 logits [V] on the host, the ids generated so far) -> logits [V] to choose from; the row given is not
written to. The ids only ever grow, so that a parser may follow them. An exception ends its request, not the others.
"""


def biased(biases: Mapping[int, float]) -> Adjust:
    """logits[id] + bias for each id."""
    ids, values = torch.tensor(list(biases)), torch.tensor(list(biases.values()), dtype=torch.float32)

    def adjust(row: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        return row.index_add(0, ids, values)

    return adjust


def penalised(presence: float, frequency: float) -> Adjust:
    """logits[id] - presence [count > 0] - frequency count, count being how often the id was generated (OpenAI's API
    reference, "frequency and presence penalties"); the prompt does not count.
    """
    counts: dict[int, int] = {}
    seen = 0

    def adjust(row: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        nonlocal seen
        for token in output[seen:]:
            counts[token] = counts.get(token, 0) + 1
        seen = len(output)
        if not counts:
            return row
        times = torch.tensor(list(counts.values()), dtype=torch.float32)
        return row.index_add(0, torch.tensor(list(counts)), -presence - frequency * times)

    return adjust


def in_turn(steps: Sequence[Adjust]) -> Adjust | None:
    """One after the other; None for none."""
    if len(steps) < 2:
        return steps[0] if steps else None

    def adjust(row: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        for step in steps:
            row = step(row, output)
        return row

    return adjust
