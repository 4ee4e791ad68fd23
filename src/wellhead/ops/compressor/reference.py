"""KV compressor: one record per `ratio` tokens, pooled per channel with a learned softmax gate.

ratio 128 pools the block's own 128 tokens. ratio 4 overlaps: channels split into halves A and B, the record pools
eight (score, value) pairs per channel, half A of the four tokens before the block and half B of the block's four.
Source: DeepSeek-V4 reference inference (Compressor). State and pooling are fp32; scores here include `ape`.
"""

from __future__ import annotations

import torch


def overlap(ratio: int) -> int:
    """How many blocks a record pools: 2 where blocks overlap (ratio 4), else 1. Widths are overlap * head_dim."""
    return 2 if ratio == 4 else 1


def project(
    x: torch.Tensor, wkv: torch.Tensor, wgate: torch.Tensor, ape: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 (kv, score) [T, overlap*D]: kv = wkv x, score = wgate x + ape[position mod ratio]."""
    wide = x.float()
    score = wide @ wgate.float().T + ape.float()[positions.long() % ape.shape[0]]
    return wide @ wkv.float().T, score


def pool(kv: torch.Tensor, score: torch.Tensor, ratio: int) -> torch.Tensor:
    """Pool complete rows of tokens: kv, score fp32 [..., overlap*ratio, overlap*D] -> fp32 [..., D].

    The rows are the overlap*ratio tokens that end with the block's last one; rows before position 0 carry score
    -inf (their value is then ignored, even if it is NaN-free garbage). softmax is per channel over the rows.
    """
    if overlap(ratio) == 2:
        dim = kv.shape[-1] // 2
        kv = torch.cat((kv[..., :ratio, :dim], kv[..., ratio:, dim:]), dim=-2)
        score = torch.cat((score[..., :ratio, :dim], score[..., ratio:, dim:]), dim=-2)
    return (torch.softmax(score, dim=-2) * kv).sum(-2)
