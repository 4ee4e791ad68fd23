"""Sums over ranks with a card each: the fp32 sum in the order of the ranks, rounded once, the same bits everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fakes import sums_rank
from wellhead.environment import without_multicast
from wellhead.ops.peer_sum import WORLDS

TESTS = Path(__file__).resolve().parents[1]
CARDS = torch.cuda.device_count() if torch.cuda.is_available() else 0


@pytest.mark.gpu
@pytest.mark.parametrize("world", WORLDS)
def test_sums_in_and_out_of_a_graph(world: int, tmp_path: Path) -> None:
    if world > CARDS:
        pytest.skip(f"needs {world} CUDA cards, torch sees {CARDS}")
    variables = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "2"}
    without_multicast(variables)
    words = [sys.executable, str(Path(sums_rank.__file__))]
    meeting = f"file://{tmp_path / 'meeting'}"
    ranks = [
        subprocess.Popen(
            [*words, str(rank), str(world), meeting], env=variables, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    print(said[0])
    for rank, words_of_it in zip(ranks, said, strict=True):
        assert rank.returncode == 0, words_of_it
        assert "one-shot" in words_of_it.split()[:1], words_of_it
