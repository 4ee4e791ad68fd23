"""Bytes that one rank holds as long as it runs, counted off the weights' tree and the caches themselves on "meta"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from wellhead.model.config import ModelConfig
from wellhead.model.device_layout import DeviceLayout
from wellhead.model.device_weights import leaves
from wellhead.model.numerics import Numerics
from wellhead.model.split import Split
from wellhead.model.state import LayerState, ModelState


@dataclass(frozen=True)
class WeightBytes:
    """One rank's weights: routed experts' codes, UE8M0 (and FP8 experts') scales, embedding and vocabulary matrix, and
    everything else.
    """

    experts: int
    scales: int
    vocabulary: int
    dense: int

    @property
    def total(self) -> int:
        return self.experts + self.scales + self.vocabulary + self.dense


@dataclass(frozen=True)
class StateBytes:
    """Caches of one logical page of 256 tokens: its window records (with the compressors' rows that resuming behind it
    takes), compressed records and index keys over all layers; and of one state slot. Every rank holds all of them:
    there is one key-value head.
    """

    window_page: int
    compressed_page: int
    index_page: int
    slot: int

    @property
    def page(self) -> int:
        return self.window_page + self.compressed_page + self.index_page


@lru_cache(maxsize=64)
def weight_bytes(config: ModelConfig, split: Split, *, with_mtp: bool = False) -> WeightBytes:
    """Counted off the tree itself. ValueError when the model cannot be split so."""
    weights = DeviceLayout.of(config, split, "meta").allocate(with_mtp)
    kinds = dict.fromkeys(("experts", "scales", "vocabulary", "dense"), 0)
    for path, tensor in leaves(weights):
        kinds[_kind(path)] += tensor.nbytes
    return WeightBytes(**kinds)


def _kind(path: str) -> str:
    parts = path.split(".")
    if parts[-1] in ("s13", "s2") or (parts[-1] == "scale" and "hyper" not in parts[-2]):
        return "scales"
    if "experts" in parts:
        return "experts"
    return "vocabulary" if parts[-1] in ("embedding", "vocabulary") else "dense"


@lru_cache(maxsize=64)
def state_bytes(config: ModelConfig, numerics: Numerics, *, with_mtp: bool = False) -> StateBytes:
    """Counted off `ModelState` itself."""

    def layers(pages: int, slots: int) -> list[LayerState]:
        with torch.device("meta"):
            state = ModelState.allocate(config, numerics, pages, slots, with_mtp=with_mtp)
        return [*state.layers, *state.mtp]

    page, slot = layers(1, 0), layers(0, 1)
    return StateBytes(
        window_page=sum(_bytes(layer.window, layer.tail, layer.index_tail) for layer in page),
        compressed_page=sum(layer.compressed.nbytes for layer in page if layer.compressed is not None),
        index_page=sum(layer.index_keys.nbytes for layer in page if layer.index_keys is not None),
        slot=sum(layer.nbytes for layer in slot),
    )


def _bytes(*tensors: torch.Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
