"""Random weights over two ranks, both in this process: what one computes, to the last bits of fp32.

In the checkpoint's numerics random weights cannot show it: a rank's sum rounded elsewhere moves E4M3 codes, ten times
as much a layer later, and then the choice of experts (docs/log.md).
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tools import write_checkpoint
from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import Checkpoint, open_checkpoint
from wellhead.model.config_file import CONFIG_FILE, read_json
from wellhead.model.load import load_model
from wellhead.model.locate import resolve_model
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.split import Experts, Split

TOKENS = torch.randint(3, 3000, (140,), generator=torch.Generator().manual_seed(5)).tolist()  # a block of 128 ends


class Meeting(Group):
    """One of `world` threads, which lay their parts on a table and wait for each other."""

    def __init__(self, rank: int, world: int, table: list[torch.Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.world, self._table, self._barrier = rank, world, table, barrier

    def reduce(self, partial: torch.Tensor, way: str | None = None) -> None:
        partial.copy_(torch.stack(self._all(partial)).sum(0))

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(part), -1)

    def _all(self, part: torch.Tensor) -> list[torch.Tensor]:
        self._table[self.rank] = part.clone()
        self._barrier.wait()
        parts = list(self._table)
        self._barrier.wait()
        return parts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The embedded model's configuration with random weights."""
    folder: Path = tmp_path_factory.mktemp("random")
    write_checkpoint.write(folder, read_json(resolve_model() / CONFIG_FILE), pool_bytes=1 << 20)
    return open_checkpoint(folder)


def logits(checkpoint: Checkpoint, split: Split, group: Group) -> torch.Tensor:
    """fp32 [140, vocabulary] of one prompt."""
    model = load_model(checkpoint, Numerics.named("exact"), split=split, group=group)
    state = model.allocate(1, 1)
    return model.logits(model.forward(Batch.build([Chunk(TOKENS, 0, [0], 0, logits="all")]), state))


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoint) -> torch.Tensor:
    return logits(checkpoint, WHOLE, ALONE)


@pytest.mark.parametrize("experts", ["width", "expert"])
def test_ranks_compute_what_one_does(checkpoint: Checkpoint, alone: torch.Tensor, experts: Experts) -> None:
    world = 2  # as many as its groups of heads
    table, barrier = [torch.empty(0)] * world, threading.Barrier(world, timeout=120)

    def rank(number: int) -> torch.Tensor:
        try:
            return logits(checkpoint, Split(number, world, experts), Meeting(number, world, table, barrier))
        except BaseException:
            barrier.abort()  # the others do not wait for this one
            raise

    with ThreadPoolExecutor(world) as pool:
        every = list(pool.map(rank, range(world)))
    assert alone.std() > 0.5 and all(torch.equal(each, every[0]) for each in every)
    assert (every[0] - alone).abs().max() < 1e-4 * alone.abs().max()
