"""Weights out of a published checkpoint for training, and trained ones back into its files, every other byte kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from wellhead.model.checkpoint import open_checkpoint
from wellhead.model.config_file import load_config
from wellhead.model.parameters import load_parameters
from wellhead.model.shard import read_header
from wellhead.model.weights import iter_tensors

from .config import CONFIG
from .initial import Weights, init_weights


def read_weights(folder: Path) -> Weights:
    """A checkpoint of `CONFIG`'s shape as fp32 training weights, the MTP layer's included."""
    checkpoint = open_checkpoint(folder)
    if checkpoint.config != load_config(CONFIG):
        raise ValueError(f"{folder}: its config.json is not the one of tools/train_tiny/config.py")
    named = load_parameters(iter_tensors(checkpoint), checkpoint.config, with_mtp=True)
    return {name: named[name.removesuffix(".weight")] for name in init_weights(CONFIG)}


def patch(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[int, int]:
    """Write tensors (official names and dtypes) over those of the same names in a checkpoint's files.

    (bytes of them that changed, bytes proven unchanged): headers and all other tensors, compared after the write.
    ValueError for a tensor of another dtype or shape than the stored one.
    """
    stored = open_checkpoint(folder).tensors
    before = {file: file.read_bytes() for file in {entry.file for entry in stored.values()}}
    after = {file: bytearray(data) for file, data in before.items()}
    touched: dict[Path, list[tuple[int, int]]] = {file: [] for file in before}
    for name, tensor in tensors:
        entry = stored[name]
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if tuple(tensor.shape) != entry.shape or len(data) != entry.nbytes:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, stored {entry.dtype} {list(entry.shape)}")
        after[entry.file][entry.begin : entry.end] = data
        touched[entry.file].append((entry.begin, entry.end))
    for file, spans in touched.items():
        if spans:
            written = file.with_suffix(".new")
            written.write_bytes(after[file])
            os.replace(written, file)
    changed = sum(_changed(before[file], file.read_bytes(), spans) for file, spans in touched.items())
    return changed, sum(_kept(file, before[file], spans) for file, spans in touched.items())


def _changed(before: bytes, now: bytes, spans: list[tuple[int, int]]) -> int:
    return sum(a != b for begin, end in spans for a, b in zip(before[begin:end], now[begin:end], strict=True))


def _kept(file: Path, before: bytes, spans: list[tuple[int, int]]) -> int:
    """Bytes of a file outside `spans`, after comparing each of them with what it was."""
    now, at, kept = file.read_bytes(), 0, 0
    for begin, end in [*sorted(spans), (len(before), len(before))]:
        if now[at:begin] != before[at:begin]:
            raise RuntimeError(f"{file}: bytes {at} to {begin} belong to no patched tensor and have changed")
        at, kept = end, kept + begin - at
    if len(now) != len(before):
        raise RuntimeError(f"{file}: {len(now)} bytes, it had {len(before)}")
    read_header(file)
    return kept
