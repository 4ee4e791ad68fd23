"""Load a checkpoint as one rank does, and prove it:

    python -m tools.load_check FOLDER [--device cuda] [--rank 0 --world 1] [--experts width] [--mtp] [--samples 200]

First a plain read of the same files, then the load, then `samples` tensors are taken out of the device layout and
compared with the file byte for byte. The last line is one JSON object. `--cold` drops the files from the page cache in
front of each pass. Host memory is the process's peak beyond what it was before, torch and its libraries apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from wellhead.model.checkpoint import Checkpoint, open_checkpoint
from wellhead.model.device_weights import ModelWeights
from wellhead.model.locate import resolve_model
from wellhead.model.split import Split
from wellhead.model.stream import BUFFER_BYTES, BUFFERS, THREADS, load_device_weights
from wellhead.model.unpack import official_tensors


class Peak:
    """Most bytes of this process's own memory while it was watched, sampled every few milliseconds."""

    def __init__(self) -> None:
        self.before = self.most = resident()

    @property
    def grown(self) -> int:
        return self.most - self.before


@contextmanager
def watched() -> Iterator[Peak]:
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak.most = max(peak.most, resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.most = max(peak.most, resident())


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def plain_read(checkpoint: Checkpoint) -> tuple[int, float]:
    """(bytes, seconds) of reading every file with weights, as many threads and as large pieces as the loader."""
    files = sorted({stored.file for stored in checkpoint.tensors.values()})
    jobs = [(file, at) for file in files for at in range(0, file.stat().st_size, BUFFER_BYTES)]
    local = threading.local()

    def read(job: tuple[Path, int]) -> int:
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(BUFFER_BYTES))
        descriptor = os.open(job[0], os.O_RDONLY)
        try:
            return os.preadv(descriptor, [local.buffer], job[1])
        finally:
            os.close(descriptor)

    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        total = sum(pool.map(read, jobs))
    return total, time.perf_counter() - start


def drop(checkpoint: Checkpoint) -> None:
    """Take the files out of the page cache, as far as the system allows."""
    for file in {stored.file for stored in checkpoint.tensors.values()}:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def differing(checkpoint: Checkpoint, weights: ModelWeights, samples: int, seed: int) -> tuple[int, list[str]]:
    """(tensors compared, those that differ); of a split model the part of each tensor that is this rank's."""
    found = {name: index for index, (name, _) in enumerate(official_tensors(weights))}
    names = set(random.Random(seed).sample(sorted(found), min(samples, len(found))))
    wrong = []
    for name, tensor in official_tensors(weights):
        if name not in names:
            continue
        stored = checkpoint.tensors[name]
        with safe_open(stored.file, framework="pt") as shard:
            expected = shard.get_tensor(stored.name)
        if not _same(part_of(expected, tensor.shape, weights.split), tensor.cpu()):
            wrong.append(name)
    return len(names), wrong


def part_of(whole: torch.Tensor, shape: torch.Size, split: Split) -> torch.Tensor:
    """The rank's share along the one dimension that differs."""
    for dim, (size, share) in enumerate(zip(whole.shape, shape, strict=True)):
        if size != share:
            return whole.narrow(dim, split.rank * share, share)
    return whole


def _same(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    if stored.shape != loaded.shape:
        return False
    if stored.dtype == torch.float32 and loaded.dtype == torch.uint8:
        return torch.equal(stored.log2() + 127, loaded.float())
    return torch.equal(stored.contiguous().view(torch.uint8), loaded.contiguous().view(torch.uint8))


def main(arguments: list[str]) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m tools.load_check", description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--experts", choices=("width", "expert"), default="width")
    parser.add_argument("--mtp", action="store_true")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    checkpoint = open_checkpoint(resolve_model(given.folder))
    split, cuda = Split(given.rank, given.world, given.experts), given.device.startswith("cuda")
    if given.cold:
        drop(checkpoint)
    plain_bytes, plain_seconds = plain_read(checkpoint)
    if given.cold:
        drop(checkpoint)
    if cuda:
        torch.zeros(1, device=given.device)
        torch.cuda.reset_peak_memory_stats(given.device)
    with watched() as peak:
        weights, report = load_device_weights(checkpoint, split, given.device, with_mtp=given.mtp, progress=True)
    device_peak = torch.cuda.max_memory_allocated(given.device) if cuda else None
    compared, wrong = differing(checkpoint, weights, given.samples, given.seed)
    line = {
        "folder": str(given.folder), "layers": checkpoint.config.num_hidden_layers, "rank": given.rank,
        "world": given.world, "device": torch.cuda.get_device_name(given.device) if cuda else "cpu",
        "read_bytes": report.read_bytes, "weight_bytes": report.weight_bytes, "seconds": round(report.seconds, 3),
        "gb_per_s": round(report.gb_per_s, 3), "plain_gb_per_s": round(plain_bytes / plain_seconds / 1e9, 3),
        "staging_bytes": BUFFERS * BUFFER_BYTES, "host_peak_bytes": peak.grown - (0 if cuda else report.weight_bytes),
        "device_peak_bytes": device_peak, "compared": compared, "wrong": wrong, "cold": given.cold,
    }  # fmt: skip
    print(json.dumps(line))
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"load_check: {error}")
