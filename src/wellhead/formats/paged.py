"""Pages of records that keep their scales apart: a page's data rows, then its tail rows, then padding.

For a page of P records: row i at byte i * data_bytes, its tail (scales) at P * data_bytes + i * tail_bytes.
Slot s lives in page s // P at row s % P; slot -1 means "no record". `kv_record` and `index_key` use it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_BYTE_DTYPES = (torch.uint8, torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True)
class PagedLayout:
    """A page layout as a value. A cache is `[num_pages, page_stride(P)]`, one byte an element, rows dense.

    `alignment` rounds the page up; it does not exceed the record, so the cache's width tells P.
    """

    name: str
    data_bytes: int
    tail_bytes: int
    alignment: int = 1

    @property
    def record_bytes(self) -> int:
        return self.data_bytes + self.tail_bytes

    def page_stride(self, page_size: int) -> int:
        """Bytes from one page of `page_size` records to the next."""
        if page_size < 1:
            raise ValueError(f"a {self.name} page holds at least 1 record, got page size {page_size}")
        return -(-page_size * self.record_bytes // self.alignment) * self.alignment

    def allocate(
        self, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> torch.Tensor:
        """Zeroed cache `[num_pages, page_stride]` in one contiguous allocation."""
        _check_dtype(self.name, dtype)
        if num_pages < 0:
            raise ValueError(f"number of {self.name} pages must not be negative, got {num_pages}")
        shape = (num_pages, self.page_stride(page_size))
        return torch.zeros(shape, dtype=torch.uint8, device=device).view(dtype)

    def page_size(self, cache: torch.Tensor) -> int:
        """Records per page P of a cache, after checking that it is one."""
        _check_dtype(self.name, cache.dtype)
        if cache.dim() != 2 or (cache.shape[1] > 1 and cache.stride(1) != 1):
            raise ValueError(
                f"a {self.name} cache is [num_pages, page bytes] with a dense last dimension, "
                f"got shape {tuple(cache.shape)} stride {cache.stride()}"
            )
        page_size = cache.shape[1] // self.record_bytes
        if page_size < 1 or self.page_stride(page_size) != cache.shape[1]:
            raise ValueError(
                f"{cache.shape[1]} bytes is no {self.name} page: {max(page_size, 1)} and {page_size + 1} "
                f"records take {self.page_stride(max(page_size, 1))} and {self.page_stride(page_size + 1)}"
            )
        return page_size

    def kernel_view(self, cache: torch.Tensor) -> torch.Tensor:
        """`[num_pages, P, 1, record_bytes]` over the same memory, the shape kernels take.

        Only stride(0) and the base address are meaningful: its rows do not coincide with records.
        """
        page_size = self.page_size(cache)
        return cache[:, : page_size * self.record_bytes].unflatten(1, (page_size, 1, self.record_bytes))

    def scatter(self, cache: torch.Tensor, slots: torch.Tensor, data: torch.Tensor, tail: torch.Tensor) -> None:
        """Write uint8 data [N, data_bytes], tail [N, tail_bytes] at slots [N], distinct; -1 is skipped."""
        data_rows, tail_rows, at, kept = self._places(cache, slots)
        data_rows[at] = data[kept]
        tail_rows[at] = tail[kept]

    def gather(self, cache: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(data [M, data_bytes], tail [M, tail_bytes], mask like slots) of the M slots that are not -1."""
        data_rows, tail_rows, at, kept = self._places(cache, slots)
        return data_rows[at], tail_rows[at], kept

    def _places(
        self, cache: torch.Tensor, slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Data and tail rows [pages, P, bytes], (page, row) of the slots that are not -1, and which those are."""
        page_size = self.page_size(cache)
        wide = self._checked_slots(cache, slots, page_size)
        kept = wide >= 0
        middle, end = page_size * self.data_bytes, page_size * self.record_bytes
        pages = cache.view(torch.uint8)
        data_rows = pages[:, :middle].unflatten(1, (page_size, self.data_bytes))
        tail_rows = pages[:, middle:end].unflatten(1, (page_size, self.tail_bytes))
        return data_rows, tail_rows, (wide[kept] // page_size, wide[kept] % page_size), kept

    def _checked_slots(self, cache: torch.Tensor, slots: torch.Tensor, page_size: int) -> torch.Tensor:
        if slots.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{self.name} slots are int32 or int64, got {slots.dtype}")
        wide = slots.to(torch.int64)
        capacity = cache.shape[0] * page_size
        wrong = (wide < -1) | (wide >= capacity)
        if wrong.any():
            raise ValueError(
                f"{self.name} slot {int(wide[wrong][0])} is outside the cache: expected -1 (skip) or "
                f"0..{capacity - 1} ({cache.shape[0]} pages of {page_size})"
            )
        return wide


def placed(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """`gather`'s decoded records [M, D] where `kept` is, zeros elsewhere."""
    if kept.all():
        return values.view(*kept.shape, values.shape[-1])
    records = values.new_zeros(*kept.shape, values.shape[-1])
    records[kept] = values
    return records


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in _BYTE_DTYPES:
        raise ValueError(f"a {name} cache is uint8, int8 or float8_e4m3fn, got {dtype}")
