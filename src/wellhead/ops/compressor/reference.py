"""KV compressor: one record per `ratio` tokens, pooled per channel with a learned softmax gate.

ratio 128 pools the block's own 128 tokens. ratio 4 overlaps: channels split into halves A and B, the record pools eight
(score, value) pairs per channel, half A of the four tokens before the block and half B of the block's four. Source:
DeepSeek-V4 reference inference (Compressor). State and pooling are fp32; scores here include `ape`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops.linear.reference import product

MOST_DRAFTS = 3  # tokens of a request that may be computed on trial


def overlap(ratio: int) -> int:
    """How many blocks a record pools: 2 where blocks overlap (ratio 4), else 1. Widths are overlap * head_dim."""
    return 2 if ratio == 4 else 1


def project(
    x: torch.Tensor, wkv: torch.Tensor, wgate: torch.Tensor, ape: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 (kv, score) [T, overlap*D]: kv = wkv x, score = wgate x + ape[position mod ratio]."""
    score = product(x, wgate) + ape.float()[positions.long() % ape.shape[0]]
    return product(x, wkv), score


def pool(kv: torch.Tensor, score: torch.Tensor, ratio: int) -> torch.Tensor:
    """Pool complete rows of tokens: kv, score fp32 [..., overlap*ratio, overlap*D] -> fp32 [..., D].

    The rows are the overlap*ratio tokens that end with the block's last one; rows before position 0 carry score -inf
    (their value is then ignored, even if it is NaN-free garbage). softmax is per channel over the rows.
    """
    if overlap(ratio) == 2:
        dim = kv.shape[-1] // 2
        kv = torch.cat((kv[..., :ratio, :dim], kv[..., ratio:, dim:]), dim=-2)
        score = torch.cat((score[..., :ratio, :dim], score[..., ratio:, dim:]), dim=-2)
    return (torch.softmax(score, dim=-2) * kv).sum(-2)


@dataclass(frozen=True)
class Blocks:
    """Which blocks a ragged batch completes and which rows they pool: index arithmetic shared by all layers of a ratio.

    `source` and `exists` [E, overlap*ratio] index the rows of (rings of the batch's requests, then the batch's own
    tokens); `tail` are the tokens whose rows stay in the ring, `tail_slot` and `tail_row` where they go.
    """

    ratio: int
    token: torch.Tensor  # int64 [E], flat index of the block's last token
    entry: torch.Tensor  # int64 [E], block number within its request
    source: torch.Tensor
    exists: torch.Tensor
    state_slots: torch.Tensor  # int64 [R]
    tail: torch.Tensor
    tail_slot: torch.Tensor
    tail_row: torch.Tensor


def pooled_rows(ratio: int) -> int:
    """Tokens that a block pools: its own, and with ratio 4 the four before."""
    return overlap(ratio) * ratio


def ring_rows(ratio: int) -> int:
    """Tokens a request keeps: the rows a block pools and room for `MOST_DRAFTS` guessed ones behind the newest, which
    then take the place of no row that is still needed when the guesses turn out wrong. Ratio 4 has a divisor of a page.
    """
    return 16 if ratio == 4 else ratio + MOST_DRAFTS + 1


def completed_blocks(
    ratio: int, positions: torch.Tensor, rows: torch.Tensor, starts: torch.Tensor, state_slots: torch.Tensor
) -> Blocks:
    """positions, rows int64 [T] (rows ascending, positions consecutive within a row), starts int64 [R+1], slots [R]."""
    ring, pooled = ring_rows(ratio), pooled_rows(ratio)
    token = ((positions + 1) % ratio == 0).nonzero().squeeze(-1)
    back = torch.arange(1 - pooled, 1, device=positions.device)
    position = positions[token].unsqueeze(-1) + back
    flat = token.unsqueeze(-1) + back
    row = rows[token].unsqueeze(-1)
    in_ring = row * ring + position % ring
    in_batch = state_slots.shape[0] * ring + flat
    exists = position >= 0
    source = torch.where(flat >= starts[row], in_batch, in_ring).masked_fill(~exists, 0)
    tail = (
        (torch.arange(positions.shape[0], device=rows.device) >= starts[rows + 1] - ring)
        .nonzero()
        .squeeze(-1)
    )
    return Blocks(
        ratio, token, positions[token] // ratio, source, exists, state_slots,
        tail, state_slots[rows[tail]], positions[tail] % ring,
    )  # fmt: skip


def advance(state: torch.Tensor, kv: torch.Tensor, score: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """Pool the blocks a batch completes and leave its last tokens in the rings: fp32 [E, D], `state` is updated.

    state fp32 [slots, ring_rows, 2*W], a row = (kv, score with ape) of the token at position = row modulo the ring; kv,
    score fp32 [T, W]. A request's rows before position 0 are never read, so a slot needs no clearing.
    """
    own = torch.cat((kv, score), dim=-1)
    width = kv.shape[-1]
    if blocks.token.numel():
        rows = torch.cat((state[blocks.state_slots].flatten(0, 1), own))[blocks.source]
        exists = blocks.exists.unsqueeze(-1)
        pooled = pool(
            rows[..., :width].masked_fill(~exists, 0.0),
            rows[..., width:].masked_fill(~exists, float("-inf")),
            blocks.ratio,
        )
    else:
        pooled = kv.new_zeros(0, width // overlap(blocks.ratio))
    state[blocks.tail_slot, blocks.tail_row] = own[blocks.tail]
    return pooled
