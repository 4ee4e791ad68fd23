"""The training state on disk: bf16 weights in files of at most 16 MiB that travel, exact fp32 that stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .config import CONFIG
from .initial import Weights, init_weights

_LIMIT = 15 * 2**20


def save(folder: Path, weights: Weights, progress: dict[str, Any]) -> None:
    """Write both forms; small fp32 tensors (scales, biases, norms) stay fp32 in the travelling form too."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "exact.safetensors")
    shards: list[Weights] = [{}]
    size = 0
    for name, t in weights.items():
        small = t.bfloat16() if t.is_floating_point() and t.numel() > 4096 else t
        small = small.to(torch.int16) if not t.is_floating_point() else small
        if size + small.nbytes > _LIMIT:
            shards.append({})
            size = 0
        shards[-1][name] = small.contiguous()
        size += small.nbytes
    for old in folder.glob("weights-*.safetensors"):
        old.unlink()
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"weights-{i}.safetensors")
    (folder / "progress.json").write_text(json.dumps(progress))


def load(folder: Path) -> tuple[Weights, dict[str, Any]]:
    """The exact weights if they are here and as far along, else the travelling ones, else a fresh start."""
    exact, note = folder / "exact.safetensors", folder / "progress.json"
    if not note.exists():
        return init_weights(CONFIG), {"progress": 0.0, "steps": 0}
    files = [exact] if exact.exists() else sorted(folder.glob("weights-*.safetensors"))
    weights = {k: t for file in files for k, t in load_file(file).items()}
    full = {k: t.float() if t.is_floating_point() else t.long() for k, t in weights.items()}
    return full, json.loads(note.read_text())
