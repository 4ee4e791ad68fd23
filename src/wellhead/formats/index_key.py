"""Paged keys of the sparse-attention indexer, 128 dims each, in the two layouts DeepGEMM's index logits read.

| layout | key i of a page of P keys (P = 64 in the kernels) | its scale | value |
|---|---|---|---|
| `FP8`, 132 B | byte 128 * i, E4M3 | 128 * P + 4 * i: one fp32 | E4M3 * scale |
| `FP4`, 68 B | byte 64 * i, E2M1, even dim low | 64 * P + 4 * i: UE8M0 per 32 dims | E2M1 * 2^(byte - 127) |

FP8 scale: max(amax, 1e-4) / 448 over the key, not rounded to a power of two (sglang's rule). FP4 scale: the
rule of `mxfp4`. A page may be padded: `cache` is then a slice of wider rows and only stride(0) changes.
"""

from __future__ import annotations

import torch

from wellhead.formats import e4m3, mxfp4
from wellhead.formats.block_fp8 import AMAX_FLOOR
from wellhead.formats.paged import PagedLayout, placed

DIM = 128
PAGE_SIZE = 64
FP8 = PagedLayout("FP8 index key", data_bytes=128, tail_bytes=4)
FP4 = PagedLayout("FP4 index key", data_bytes=64, tail_bytes=4)


def allocate_pages(
    layout: PagedLayout, num_pages: int, page_size: int = PAGE_SIZE, device: torch.device | str | None = None
) -> torch.Tensor:
    """Zeroed uint8 cache [num_pages, 132 or 68 * page_size] of `layout` `FP8` or `FP4`."""
    return layout.allocate(num_pages, page_size, torch.uint8, device)


def quantize_fp8(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """keys [..., 128] -> (float8_e4m3fn [..., 128], fp32 scale [...]); the key is divided by its scale."""
    wide = keys.float()
    amax = wide.abs().amax(-1).clamp_min(AMAX_FLOOR)
    scale = amax / amax.new_full((), e4m3.E4M3_MAX)  # by a number, a card would multiply with its reciprocal
    return e4m3.cast(wide / scale.unsqueeze(-1)), scale


def write_fp8(cache: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor) -> None:
    """Quantise keys [N, 128] and store key n at slots[n] (distinct; -1 skips it)."""
    _check_keys(slots, keys)
    codes, scale = quantize_fp8(keys)
    FP8.scatter(cache, slots, codes.view(torch.uint8), scale.unsqueeze(-1).view(torch.uint8))


def read_fp8(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """fp32 [..., 128], E4M3 * scale, of slots [...]; slot -1 gives zeros and reads nothing."""
    data, tail, kept = FP8.gather(cache, slots)
    return placed(e4m3.decode(data) * tail.contiguous().view(torch.float32), kept)


def write_fp4(cache: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor) -> None:
    """Quantise keys [N, 128] to MXFP4 and store key n at slots[n] (distinct; -1 skips it)."""
    _check_keys(slots, keys)
    packed, scale = mxfp4.quantize(keys)
    FP4.scatter(cache, slots, packed, scale)


def read_fp4(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """fp32 [..., 128] of slots [...]; slot -1 gives zeros and reads nothing."""
    data, tail, kept = FP4.gather(cache, slots)
    return placed(mxfp4.dequantize(data, tail), kept)


def _check_keys(slots: torch.Tensor, keys: torch.Tensor) -> None:
    if keys.dim() != 2 or keys.shape[1] != DIM or slots.shape != keys.shape[:1]:
        raise ValueError(
            f"writing index keys takes keys [N, {DIM}] and slots [N], got {tuple(keys.shape)} and {tuple(slots.shape)}"
        )
