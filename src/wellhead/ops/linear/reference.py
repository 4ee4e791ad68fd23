"""Linear layers over dequantised weights, with the activation quantisation that the checkpoint's kernels apply.

The published FP8 product is sum over k-blocks of (sum a b in fp32) * s_a * s_b: with both sides dequantised
exactly (an E4M3 significand times a power of two) it is an fp32 product, up to the order of the sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wellhead.formats import block_fp8

LOOP_TILE = 8  # rows: with 4 or more columns, whole vectors of every instruction set
GEMM_TILE = 4


def round_input(x: torch.Tensor) -> torch.Tensor:
    """What an FP8 kernel sees of x: E4M3 with a power-of-two scale per 128 of a row, dtype kept."""
    return block_fp8.round_rows(x, block_fp8.BLOCK)


def pad_rows(x: torch.Tensor, tile: int = LOOP_TILE) -> torch.Tensor:
    """x [..., R, K] with rows appended up to a multiple of `tile`.

    A BLAS sums a row in another order when it falls outside a full register tile (a single row: a
    matrix-vector routine), and an elementwise exp differs between the vector body of a loop and its scalar
    tail. In whole tiles a token gets the same bits in a prefill, in a decode step and in any batch.
    """
    missing = -x.shape[-2] % tile
    if missing == tile - 1 and x.dim() == 2 and x.shape[0] == 1:
        return x.expand(tile, -1)  # one token: any rows will do, and these cost nothing
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """fp32 x W^T in whole row tiles: x [..., R, K], weight [..., O, K] with the same leading dimensions."""
    return (pad_rows(x.float(), GEMM_TILE) @ weight.float().mT)[..., : x.shape[-2], :]


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """y = x W^T in fp32, rounded once to x's dtype: x [..., K], weight [O, K]."""
    return product(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1]).to(x.dtype)


def grouped(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Per-group product of the output projection: x [T, G, K], weight [G, O, K] -> [T, G, O] in x's dtype."""
    return product(x.transpose(0, 1), weight).transpose(0, 1).to(x.dtype)
