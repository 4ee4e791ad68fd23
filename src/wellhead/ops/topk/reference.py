"""Choosing the k best compressed entries of each query, the same way every time."""

from __future__ import annotations

import torch


def select(scores: torch.Tensor, visible: torch.Tensor, k: int) -> torch.Tensor:
    """int64 [T, k]: the k best of each token's first `visible` entries in ascending order, then -1.

    scores fp32 [T, C]; visible int [T], at most C, how many entries of the row exist for that token. Equal scores go to
    the lower entry. Ascending order makes the sums of the attention that follows independent of the scores.
    """
    entries = torch.arange(scores.shape[1], device=scores.device)
    hidden = entries >= visible.unsqueeze(-1)
    # entries with score -inf would tie with hidden ones; stable order still prefers them, since hidden ones
    # come later
    order = torch.sort(
        scores.masked_fill(hidden, float("-inf")), dim=-1, descending=True, stable=True
    ).indices[:, :k]
    rank = torch.arange(order.shape[1], device=scores.device)
    chosen = order.masked_fill(rank >= visible.unsqueeze(-1), scores.shape[1]).sort(-1).values
    chosen = chosen.masked_fill(chosen == scores.shape[1], -1)
    return torch.nn.functional.pad(chosen, (0, k - chosen.shape[1]), value=-1)


def first(visible: torch.Tensor, k: int) -> torch.Tensor:
    """int64 [T, k]: entries 0 .. visible-1, then -1; what `select` returns when at most k entries are visible."""
    entries = torch.arange(k, device=visible.device)
    return torch.where(entries < visible.unsqueeze(-1), entries, -1)
