"""The packed 584-byte KV record: 448 E4M3 values, 64 bf16 values, 7 UE8M0 scales and one zero byte.

| bytes of a page of P records | content |
|---|---|
| i*576 .. i*576+447 | E4M3 of dims 0..447 (no position in them) |
| i*576+448 .. i*576+575 | bf16, little-endian, of dims 448..511, already rotated |
| P*576 + i*8 + t, t = 0..6 | UE8M0 scale of dims 64t .. 64t+63 |
| P*576 + i*8 + 7 | 0 |
| P*584 .. page stride | padding to a multiple of 576 |

This is FlashMLA's "MODEL1" cache; an index is page * P + row. Quantisation: the record is rounded to bf16
first, then dims 0..447 in groups of 64 with s = 2^ceil(log2(max(amax, 1e-4) / 448)). Reading returns
bf16(E4M3 * s), which is exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wellhead.formats import block_fp8
from wellhead.formats.paged import PagedLayout, placed

DIM = 512
NOPE_DIM = 448
GROUP = 64
LAYOUT = PagedLayout("KV record", data_bytes=576, tail_bytes=8, alignment=576)

_SCALES = NOPE_DIM // GROUP


def page_stride(page_size: int) -> int:
    """Bytes of a page: 584 * page_size rounded up to a multiple of 576 (64 -> 37440, 256 -> 149760)."""
    return LAYOUT.page_stride(page_size)


def allocate_pages(
    num_pages: int,
    page_size: int,
    dtype: torch.dtype = torch.uint8,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Zeroed cache [num_pages, page_stride(page_size)] of uint8, int8 or float8_e4m3fn, same bytes."""
    return LAYOUT.allocate(num_pages, page_size, dtype, device)


def flash_mla_view(cache: torch.Tensor) -> torch.Tensor:
    """[num_pages, P, 1, 584] with stride(0) = page stride, stride(1) = 584: what FlashMLA's decode takes."""
    return LAYOUT.kernel_view(cache)


def write(cache: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor) -> None:
    """Quantise kv [N, 512] (bf16 or fp32), store record n at slots[n] (int32/int64, distinct; -1 skips)."""
    if kv.dim() != 2 or kv.shape[1] != DIM or slots.shape != kv.shape[:1]:
        raise ValueError(
            f"writing KV records takes kv [N, {DIM}] and slots [N], got {tuple(kv.shape)} and {tuple(slots.shape)}"
        )
    rounded = kv.to(torch.bfloat16)
    codes, scale = block_fp8.quantize_rows(rounded[:, :NOPE_DIM], GROUP)
    rope = rounded[:, NOPE_DIM:].contiguous()
    data = torch.cat((codes.view(torch.uint8), rope.view(torch.uint8)), dim=1)
    LAYOUT.scatter(cache, slots, data, F.pad(scale, (0, LAYOUT.tail_bytes - _SCALES)))


def read(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """bf16 [..., 512] of slots [...]; slot -1 gives zeros and reads nothing."""
    data, tail, kept = LAYOUT.gather(cache, slots)
    nope = block_fp8.dequantize_rows(data[:, :NOPE_DIM].contiguous(), tail[:, :_SCALES]).to(torch.bfloat16)
    rope = data[:, NOPE_DIM:].contiguous().view(torch.bfloat16)
    return placed(torch.cat((nope, rope), dim=1), kept)
