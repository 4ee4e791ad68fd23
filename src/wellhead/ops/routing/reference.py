"""Expert routing: sqrt(softplus) affinities, chosen by top-k of the biased score or by a token-id table ("hash").

Source: DeepSeek-V4 reference inference (Gate); bias-only-for-choice as in DeepSeek-V3 (Wang et al. 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wellhead.ops.linear.reference import pad_rows, product


def affinity(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """s = sqrt(softplus(x gate^T)) in fp32: x [T, d], gate [E, d] -> [T, E]."""
    return F.softplus(product(pad_rows(x), gate)).sqrt()[: x.shape[0]]


def weights_of(scores: torch.Tensor, ids: torch.Tensor, scale: float) -> torch.Tensor:
    """w_k = s_k / sum_k s_k * scale for the chosen ids [T, k]: fp32 [T, k]."""
    chosen = scores.gather(-1, ids)
    return chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * scale


def choose(
    scores: torch.Tensor, top_k: int, scale: float, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids int64 [T, k], weights fp32 [T, k]): ids = top-k of scores + bias, weights from the unbiased scores.

    Equal biased scores are taken in order of expert id (stable sort), so the choice is deterministic.
    """
    order = torch.sort(scores + bias, dim=-1, descending=True, stable=True).indices
    ids = order[..., :top_k]
    return ids, weights_of(scores, ids, scale)


def choose_by_token(
    scores: torch.Tensor, scale: float, table: torch.Tensor, token_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hash layers: ids = table[token id], table int [vocab, k]; weights still come from the affinities."""
    ids = table[token_ids.long()].long()
    return ids, weights_of(scores, ids, scale)
