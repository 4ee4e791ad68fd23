"""What a model remembers of its requests: paged pools behind two page tables, and a state slot per request.

| pool | layers | pages of | records a page of 256 tokens | record |
|---|---|---|---|---|
| window | all, MTP | the window table | 256 | 584 B packed, or 512 floats |
| tail, index_tail | ratio 4 | the window table | 4 | fp32 kv and score, half of each |
| compressed | ratio 4 / 128 | the logical table | 64 / 2 | 584 B packed, or 512 floats |
| index_keys | ratio 4 | the logical table | 64 | 132 B FP8, 68 B FP4, or 128 floats |
| compressor, index_compressor | ratio 4 (16 rows), 128 (132 rows) | per request | | fp32 kv and score |

Window pages may be given back once the window has passed them, so they are numbered apart from the logical pages.
A tail is what a request resumed at the end of a window page needs of the ratio-4 rings: of the page's last four
tokens, the half of the channels that plays the previous block's role. At a page's end the ratio-128 block is empty.

Nothing is cleared for a new request: it reads only what it wrote. Nor is anything undone for tokens computed on trial
that turn out wrong: their window records, entries and index keys lie where no right token looks, and are written again
when that position is computed again; the rings have room for them (`ops.compressor.reference.ring_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

from wellhead.formats import index_key, kv_record
from wellhead.model.config import ModelConfig
from wellhead.model.numerics import Numerics
from wellhead.ops.compressor import reference as compressor

PAGE_TOKENS = 256
TAIL_TOKENS = 4  # the block before a page's end; it lies in the rings' last rows, since 256 is a multiple of their 16


def records_per_page(ratio: int) -> int:
    """Records of a logical page in a pool that keeps one per `ratio` tokens; ratio 0 is the window, one per
    token.
    """
    return PAGE_TOKENS // max(ratio, 1)


def pages_for(tokens: int) -> int:
    """Logical pages that hold `tokens` tokens."""
    return -(-tokens // PAGE_TOKENS)


@dataclass(frozen=True)
class LayerState:
    """One layer's pools and rings; what its ratio does not need is None."""

    ratio: int
    window: torch.Tensor
    compressed: torch.Tensor | None = None
    index_keys: torch.Tensor | None = None
    compressor: torch.Tensor | None = None
    index_compressor: torch.Tensor | None = None
    tail: torch.Tensor | None = None
    index_tail: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))

    def tails(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(part of the rings [slots, 4, 2, D], its copies [window pages, 4, 2, D]) of each ratio-4 compressor."""
        for ring, tail in ((self.compressor, self.tail), (self.index_compressor, self.index_tail)):
            if ring is not None and tail is not None:
                yield ring[:, -TAIL_TOKENS:].unflatten(-1, (2, 2, -1))[..., 0, :], tail


@dataclass(frozen=True)
class ModelState:
    """Pools of `num_pages` logical and `window_pages` window pages and `num_slots` state slots for every layer, MTP's
    too.
    """

    layers: tuple[LayerState, ...]
    mtp: tuple[LayerState, ...]
    num_pages: int
    num_slots: int
    window_pages: int

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        numerics: Numerics,
        num_pages: int,
        num_slots: int,
        *,
        window_pages: int | None = None,
        with_mtp: bool = False,
    ) -> ModelState:
        """Zeroed pools, as many window pages as logical ones unless told; on Linux a page costs memory when it is first
        written.
        """
        window_pages = num_pages if window_pages is None else window_pages
        ratios = config.compress_ratios
        main, drafts = ratios[: config.num_hidden_layers], ratios[config.num_hidden_layers :]
        counts = num_pages, window_pages, num_slots
        layers = tuple(_layer(config, numerics, ratio, *counts) for ratio in main)
        mtp = tuple(_layer(config, numerics, ratio, *counts) for ratio in drafts) if with_mtp else ()
        return cls(layers, mtp, num_pages, num_slots, window_pages)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in (*self.layers, *self.mtp))

    def save_tail(self, slot: int, window_page: int) -> None:
        """Keep with a window page what resuming at its end needs of a state slot, whose request has just computed the
        page's last token. No value is read by the host.
        """
        for layer in self.layers:
            for ring, tail in layer.tails():
                tail[window_page] = ring[slot]

    def restore_tail(self, window_page: int, slot: int) -> None:
        """Make a state slot ready for the token behind a window page that `save_tail` was called for."""
        for layer in self.layers:
            for ring, tail in layer.tails():
                ring[slot] = tail[window_page]


def _layer(
    config: ModelConfig, numerics: Numerics, ratio: int, num_pages: int, window_pages: int, num_slots: int
) -> LayerState:
    def records(records_ratio: int, pages: int = num_pages) -> torch.Tensor:
        size = records_per_page(records_ratio)
        if numerics.quantize:
            return kv_record.allocate_pages(pages, size, numerics.kv_dtype)
        return torch.zeros(pages, size, config.head_dim, dtype=numerics.dtype)

    def rings(dim: int) -> torch.Tensor:
        width = 2 * compressor.overlap(ratio) * dim  # kv, then score
        return torch.zeros(num_slots, compressor.ring_rows(ratio), width)

    window = records(0, window_pages)
    if ratio == 0:
        return LayerState(0, window)
    if ratio == 128:
        return LayerState(ratio, window, records(ratio), compressor=rings(config.head_dim))
    size = records_per_page(ratio)
    if numerics.quantize:
        layout = index_key.FP8 if numerics.index_keys == "fp8" else index_key.FP4
        keys = index_key.allocate_pages(layout, num_pages, size)
    else:
        keys = torch.zeros(num_pages, size, config.index_head_dim, dtype=numerics.dtype)
    dims = (config.head_dim, config.index_head_dim)
    tails = (torch.zeros(window_pages, TAIL_TOKENS, 2, dim) for dim in dims)
    return LayerState(ratio, window, records(ratio), keys, *(rings(dim) for dim in dims), *tails)
