"""What a model remembers of its requests: paged pools, all behind one page table, and a state slot per
request.

| pool | layers | records a logical page of 256 tokens | record |
|---|---|---|---|
| window | all, MTP | 256 | 584 B packed, or 512 floats |
| compressed | ratio 4 / 128 | 64 / 2 | the same |
| index_keys | ratio 4 | 64 | 132 B FP8, 68 B FP4, or 128 floats |
| compressor, index_compressor | ratio 4 (8 rows), 128 (128 rows) | per request | fp32 kv and score |

Nothing is cleared for a new request: it reads only what it wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats import index_key, kv_record
from wellhead.model.config import ModelConfig
from wellhead.model.numerics import Numerics
from wellhead.ops.compressor import reference as compressor

PAGE_TOKENS = 256


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

    @property
    def nbytes(self) -> int:
        tensors = (self.window, self.compressed, self.index_keys, self.compressor, self.index_compressor)
        return sum(t.nbytes for t in tensors if t is not None)


@dataclass(frozen=True)
class ModelState:
    """Pools of `num_pages` logical pages and `num_slots` state slots for every layer, MTP's too."""

    layers: tuple[LayerState, ...]
    mtp: tuple[LayerState, ...]
    num_pages: int
    num_slots: int

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        numerics: Numerics,
        num_pages: int,
        num_slots: int,
        *,
        with_mtp: bool = False,
    ) -> ModelState:
        """Zeroed pools; on Linux a page costs memory when it is first written."""
        ratios = config.compress_ratios
        main, drafts = ratios[: config.num_hidden_layers], ratios[config.num_hidden_layers :]
        allocate = [_layer(config, numerics, ratio, num_pages, num_slots) for ratio in main]
        mtp = [_layer(config, numerics, r, num_pages, num_slots) for r in drafts] if with_mtp else []
        return cls(tuple(allocate), tuple(mtp), num_pages, num_slots)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in (*self.layers, *self.mtp))


def _layer(config: ModelConfig, numerics: Numerics, ratio: int, num_pages: int, num_slots: int) -> LayerState:
    def records(records_ratio: int) -> torch.Tensor:
        size = records_per_page(records_ratio)
        if numerics.quantize:
            return kv_record.allocate_pages(num_pages, size, numerics.kv_dtype)
        return torch.zeros(num_pages, size, config.head_dim, dtype=numerics.dtype)

    def rings(dim: int) -> torch.Tensor:
        width = 2 * compressor.overlap(ratio) * dim  # kv, then score
        return torch.zeros(num_slots, compressor.ring_rows(ratio), width)

    if ratio == 0:
        return LayerState(0, records(0))
    if ratio == 128:
        return LayerState(ratio, records(0), records(ratio), compressor=rings(config.head_dim))
    size = records_per_page(ratio)
    if numerics.quantize:
        layout = index_key.FP8 if numerics.index_keys == "fp8" else index_key.FP4
        keys = index_key.allocate_pages(layout, num_pages, size)
    else:
        keys = torch.zeros(num_pages, size, config.index_head_dim, dtype=numerics.dtype)
    dims = (config.head_dim, config.index_head_dim)
    return LayerState(ratio, records(0), records(ratio), keys, rings(dims[0]), rings(dims[1]))


def bytes_per_page(config: ModelConfig, numerics: Numerics) -> int:
    """Pool bytes of one logical page over the main layers."""
    two, one = (ModelState.allocate(config, numerics, pages, 0).nbytes for pages in (2, 1))
    return two - one
