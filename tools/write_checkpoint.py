"""Write a checkpoint of any size in the official layout with random bytes:

    python -m tools.write_checkpoint FOLDER --config v4-flash --layers 16 [--seed 0] [--shard-gb 3.5] [--tokenizer DIR]

Names, dtypes, shapes, shards, index and config.json are those of the published files. Codes are random bytes (E4M3
without NaN), scales keep activations of order one, the rest is normal: the model runs, and says nothing. The bytes
follow from the seed, the name and the shape of a tensor. Memory: pools of random bytes, less than 1 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from wellhead.formats.block_fp8 import BLOCK
from wellhead.formats.mxfp4 import BLOCK as FP4_BLOCK
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import CONFIG_FILE, load_config, read_json
from wellhead.model.dummy import E4M3_MAGNITUDES, middle_exponent
from wellhead.model.published import first_layers, published_config, published_names
from wellhead.model.shard import INDEX_FILE
from wellhead.model.tensors import TensorSpec, expected_tensors
from wellhead.model.weights import progress_bar

POOL_BYTES = 64 << 20
ROWS_AT_A_TIME = 1 << 24  # elements of a plain tensor drawn at a time
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
Shard = list[TensorSpec]


class RandomBytes:
    """The bytes of each tensor of a seed: codes, scales and bf16 matrices are windows of pools, the rest is drawn."""

    def __init__(self, config: ModelConfig, seed: int, pool_bytes: int = POOL_BYTES):
        self._config, self._seed = config, seed
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 256, (pool_bytes,), dtype=torch.uint8, generator=generator)
        signs = codes & 128
        e4m3 = torch.randint(0, E4M3_MAGNITUDES, (pool_bytes,), dtype=torch.uint8, generator=generator) | signs
        self._pools = {"I8": codes, "F8_E4M3": e4m3}
        self._steps = torch.randint(0, 3, (pool_bytes,), dtype=torch.uint8, generator=generator)
        self._noise = torch.randn(pool_bytes // 2, generator=generator)
        # by inputs; filled here, since the writers are threads
        matrices = {spec.shape[1] for spec in expected_tensors(config) if _is_bf16_matrix(spec)}
        self._matrices = {k: _bytes((self._noise * k**-0.5).bfloat16()) for k in matrices}
        self._embedding = _bytes(self._noise.bfloat16())

    def chunks(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """The tensor's bytes in order, uint8, in pieces."""
        start = zlib.crc32(f"{self._seed} {spec.name}".encode())
        if spec.dtype in self._pools:
            yield from _window(self._pools[spec.dtype], start, spec.nbytes)
            return
        if _is_bf16_matrix(spec):
            pool = self._embedding if spec.name == "embed.weight" else self._matrices[spec.shape[1]]
            yield from _window(pool, 2 * start, spec.nbytes)
            return
        if spec.dtype == "F8_E8M0":
            least = 126 + self._middle(spec)
            yield from (steps + least for steps in _window(self._steps, start, spec.nbytes))
            return
        generator = torch.Generator().manual_seed(start)
        rows, columns = spec.shape[0], math.prod(spec.shape[1:])
        step = max(1, ROWS_AT_A_TIME // columns)
        for low in range(0, rows, step):
            shape = (min(step, rows - low), columns)
            yield _bytes(self._drawn(spec, shape, low, generator))

    def _middle(self, spec: TensorSpec) -> int:
        fp4 = ".experts." in spec.name and self._config.expert_dtype == "fp4"
        return middle_exponent("E2M1" if fp4 else "E4M3", spec.shape[1] * (FP4_BLOCK if fp4 else BLOCK))

    def _drawn(self, spec: TensorSpec, shape: tuple[int, int], low: int, generator: torch.Generator) -> torch.Tensor:
        name = spec.name.split(".")[-1]
        if name == "scale":
            middle = self._middle(spec)
            return torch.ldexp(torch.ones(()), torch.randint(middle - 1, middle + 2, shape, generator=generator))
        if spec.dtype == "I64":
            experts, chosen = self._config.n_routed_experts, shape[1]
            first = torch.randint(0, experts, (shape[0], 1), generator=generator)
            stride = max(1, experts // chosen)
            return (first + stride * torch.arange(chosen)) % experts
        noise = torch.randn(shape, generator=generator)
        dtype = torch.bfloat16 if spec.dtype == "BF16" else torch.float32
        if name.endswith("_base"):
            streams = self._config.hc_mult
            mixing = torch.arange(low, low + shape[0]) - 2 * streams
            own = (mixing >= 0) & (mixing % (streams + 1) == 0)
            return (0.1 * noise + 2 * own.unsqueeze(1)).to(dtype)
        if name.endswith("_scale"):
            return 0.5 + 0.1 * noise
        if name in ("attn_sink", "ape", "bias"):
            return 0.1 * noise
        return (1 + 0.1 * noise if len(spec.shape) == 1 else noise / math.sqrt(shape[1])).to(dtype)


def _is_bf16_matrix(spec: TensorSpec) -> bool:
    return spec.dtype == "BF16" and len(spec.shape) == 2


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8).flatten()


def _window(pool: torch.Tensor, start: int, nbytes: int) -> Iterator[torch.Tensor]:
    """`nbytes` of the pool from `start`, round and round."""
    at = start % pool.shape[0]
    while nbytes:
        piece = pool[at : at + nbytes]
        yield piece
        nbytes, at = nbytes - piece.shape[0], 0


def write(
    folder: Path,
    raw: dict[str, Any],
    *,
    seed: int = 0,
    shard_bytes: int = 3_500_000_000,
    pool_bytes: int = POOL_BYTES,
    threads: int = 4,
    progress: bool = False,
) -> int:
    """Write the checkpoint of a config.json dict; bytes of tensors. ValueError for a folder that is not empty."""
    config = load_config(raw)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: not empty, expected a new folder for the checkpoint")
    source = RandomBytes(config, seed, pool_bytes)
    shards = list(_shards(config, shard_bytes))
    total = sum(spec.nbytes for shard in shards for spec in shard)
    if total > shutil.disk_usage(folder).free:
        raise ValueError(f"{folder}: {total / 1e9:.1f} GB to write, {shutil.disk_usage(folder).free / 1e9:.1f} GB free")
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    with progress_bar(total, progress, "writing weights") as advance, ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(write_shard, folder / name, shard, source, advance)
            for name, shard in zip(names, shards, strict=True)
        ]
        for job in jobs:
            job.result()
    weight_map = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    return total


class Source(Protocol):
    def chunks(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """The tensor's bytes in order, uint8, in pieces."""


def write_shard(path: Path, shard: Shard, source: Source, advance: Callable[[int], None]) -> None:
    """One safetensors file of the tensors in `shard`."""
    with path.open("wb", buffering=0) as stream:
        _write_all(stream, _header(shard))
        for spec in shard:
            for chunk in source.chunks(spec):
                _write_all(stream, chunk.numpy().data)
                advance(chunk.numel())


def _shards(config: ModelConfig, shard_bytes: int) -> Iterator[Shard]:
    """Tensors in the model's order, as many a file as fit; one larger than that gets its own."""
    shard: Shard = []
    used = 0
    for spec in expected_tensors(config):
        if shard and used + spec.nbytes > shard_bytes:
            yield shard
            shard, used = [], 0
        shard.append(spec)
        used += spec.nbytes
    yield shard


def _header(shard: Shard) -> bytes:
    """Length and JSON of a safetensors file, padded so that tensors begin at a multiple of eight."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for spec in shard:
        offsets = [position, position + spec.nbytes]
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(stream: BinaryIO | Any, data: bytes | memoryview) -> None:
    """Raw files may take a part of what they are given."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def main(arguments: list[str]) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m tools.write_checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--config", default="v4-flash", help=f"{', '.join(published_names())}, or the path of a config.json"
    )
    parser.add_argument("--layers", type=int, help="only the first so many main layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-gb", type=float, default=3.5)
    parser.add_argument("--tokenizer", type=Path, help="a folder whose tokenizer files are copied")
    given = parser.parse_args(arguments)
    raw = published_config(given.config) if given.config in published_names() else read_json(Path(given.config))
    if given.layers is not None:
        raw = first_layers(raw, given.layers)
    total = write(given.folder, raw, seed=given.seed, shard_bytes=int(given.shard_gb * 1e9), progress=True)
    for name in TOKENIZER_FILES if given.tokenizer else ():
        if (given.tokenizer / name).is_file():
            shutil.copyfile(given.tokenizer / name, given.folder / name)
    print(f"{given.folder}: {total} bytes of tensors")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"write_checkpoint: {error}")
