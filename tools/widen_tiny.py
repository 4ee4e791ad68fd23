#!/usr/bin/env python3
"""Write the embedded model, widened by zeros so that eight ranks divide it:

    python -m tools.widen_tiny FOLDER

It answers as the embedded one does, so that ranks can be asked questions whose answers are known. Two groups of heads
become eight, and 256 channels of experts 2,048: the first half of what there was begins each axis that grows, the
second half its middle, and what lies between adds nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tools.write_checkpoint import TOKENIZER_FILES, write_shard
from wellhead.model.checkpoint import Checkpoint, open_checkpoint, resolve_model
from wellhead.model.config_file import CONFIG_FILE, load_config, read_json
from wellhead.model.tensors import TensorSpec, expected_tensors
from wellhead.model.weights import iter_tensors

WIDER = {"num_attention_heads": 16, "o_groups": 8, "moe_intermediate_size": 2048}
UE8M0_ONE = 127


def widened(tensor: torch.Tensor, shape: tuple[int, ...], fill: float) -> torch.Tensor:
    """Its halves at the beginning and the middle of every axis that is longer in `shape`, `fill` elsewhere."""
    for axis, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        if old == new:
            continue
        half, wide = old // 2, list(tensor.shape)
        wide[axis] = new
        grown = torch.full(wide, fill, dtype=tensor.dtype)
        grown.narrow(axis, 0, half).copy_(tensor.narrow(axis, 0, half))
        grown.narrow(axis, new // 2, half).copy_(tensor.narrow(axis, half, half))
        tensor = grown
    return tensor.contiguous()


class Widened:
    """The embedded checkpoint's tensors in wider shapes, as `write_checkpoint.write_shard` takes them."""

    def __init__(self, checkpoint: Checkpoint):
        self._tensors = dict(iter_tensors(checkpoint))

    def chunks(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        tensor = self._tensors[spec.name]
        one = UE8M0_ONE if spec.dtype == "F8_E8M0" else 1.0
        codes = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor  # of codes no zero has other bytes
        yield widened(codes, spec.shape, one if spec.name.endswith(".scale") else 0).view(torch.uint8).flatten()


def write(folder: Path) -> None:
    """The checkpoint, its configuration and tokenizer. ValueError for a folder that is not empty."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: not empty, expected a new folder for the checkpoint")
    source = resolve_model()
    raw = read_json(source / CONFIG_FILE) | WIDER
    shard = list(expected_tensors(load_config(raw)))
    write_shard(folder / "model.safetensors", shard, Widened(open_checkpoint(source)), lambda count: None)
    (folder / CONFIG_FILE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    try:
        write(parser.parse_args().folder)
    except ValueError as error:
        sys.exit(f"widen_tiny: {error}")
