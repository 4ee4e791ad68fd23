"""Lightning indexer: which compressed entries a query may attend.

I[p, c] = sum_h relu(q[p, h] . k[c]) * w[p, h]; relu comes before the (possibly negative) weight.
Source: DeepSeek-V4 reference inference (Indexer). Scores are fp32.
"""

from __future__ import annotations

import torch


def hadamard(dim: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """fp32 Sylvester matrix H / sqrt(dim), dim a power of two; orthogonal and symmetric."""
    if dim < 1 or dim & (dim - 1):
        raise ValueError(f"a Sylvester Hadamard matrix needs a power of two, got {dim}")
    h = torch.ones(1, 1, device=device)
    while h.shape[0] < dim:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
    return h * dim**-0.5


def rotate(x: torch.Tensor) -> torch.Tensor:
    """y = x H over the last dimension, fp32 inside, rounded to x's dtype: spreads outliers before quantisation."""
    return (x.float() @ hadamard(x.shape[-1], x.device)).to(x.dtype)


def logits(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """q [..., T, H, D], k [..., C, D], weights fp32 [..., T, H] -> fp32 [..., T, C]."""
    scores = torch.relu(torch.einsum("...thd,...cd->...thc", q.float(), k.float()))
    return torch.einsum("...thc,...th->...tc", scores, weights.float())
