"""Sums through memory that all ranks write: processes under the interpreter; on a card, streams of one process.

tests/kernels/test_sums_on_cards.py has a card for each rank.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fakes import peer
from wellhead.model import sums
from wellhead.model.device_reference.experts import Sums
from wellhead.ops.peer_sum import PROGRAMS, WORLDS, PeerSum, limit, place_words

ON_CARD = torch.cuda.is_available()
DEVICE = "cuda" if ON_CARD else "cpu"
TESTS = Path(__file__).resolve().parents[1]
KEPT: list[torch.Tensor] = []  # what ranks know by its address only
PATIENCE = 10_000_000  # looks, some seconds: a card that waits for ever would not even fail


@pytest.mark.parametrize("world", WORLDS if ON_CARD else WORLDS[:2])
def test_every_rank_has_the_sum_rounded_once(world: int, tmp_path: Path) -> None:
    if ON_CARD:
        streams_of_one_card(world)
        return
    for rank in range(world):
        (tmp_path / str(rank)).write_bytes(bytes(8 * place_words(world)))
    path = f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}"
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(Path(peer.__file__))]
    ranks = [
        subprocess.Popen([*command, str(rank), str(world), str(tmp_path)], env=variables, stderr=subprocess.PIPE)
        for rank in range(world)
    ]
    for process in ranks:
        try:
            _, said = process.communicate(timeout=120)
        finally:
            for other in ranks if process.returncode else []:
                other.kill()
        assert process.returncode == 0, said.decode()


def ranks_of_one_place(world: int) -> list[PeerSum]:
    memory = torch.zeros(world, place_words(world), dtype=torch.int64, device=DEVICE)
    KEPT[:] = [memory]
    places = torch.tensor([own.data_ptr() for own in memory], device=DEVICE)
    return [PeerSum(rank, places, torch.zeros(PROGRAMS, dtype=torch.int32, device=DEVICE)) for rank in range(world)]


def streams_of_one_card(world: int) -> None:
    """The kernel itself, every rank in a stream; they run at the same time as long as all programs fit."""
    ranks, streams = ranks_of_one_place(world), [torch.cuda.Stream() for _ in range(world)]
    for rank in ranks:
        rank.run(torch.empty(0, dtype=torch.bfloat16, device=DEVICE))  # compiles, and is a call of all
    for call, size in enumerate(peer.SIZES):
        size = min(size, 128 * 256 // world * 2)
        parts = [peer.part(call, rank, size).to(DEVICE) for rank in range(world)]
        torch.cuda.synchronize()
        for rank, part, stream in zip(ranks, parts, streams, strict=True):
            with torch.cuda.stream(stream):
                rank.run(part, patience=PATIENCE)
        torch.cuda.synchronize()
        expected = peer.expected(call, world, size).view(torch.int16)
        for rank, part in enumerate(parts):
            assert torch.equal(part.cpu().view(torch.int16), expected), (call, size, rank)
    for tokens in peer.TOKENS:
        found = [torch.full((tokens, 130), torch.nan, dtype=torch.bfloat16, device=DEVICE) for _ in range(world)]
        own = [peer.addends(rank, tokens).to(DEVICE) for rank in range(world)]
        for rank, part, of_it, stream in zip(ranks, found, own, streams, strict=True):
            with torch.cuda.stream(stream):
                rank.run(part, of_it, patience=PATIENCE)
        torch.cuda.synchronize()
        expected = peer.expected_of_addends(world, tokens).view(torch.int16)
        for rank, part in enumerate(found):
            assert torch.equal(part.cpu().view(torch.int16), expected), (tokens, rank)


def test_a_rank_that_does_not_come_is_not_waited_for_with_patience() -> None:
    ranks = ranks_of_one_place(2)
    found = peer.part(0, 0, 4096).to(DEVICE)
    ranks[0].run(found, patience=10)
    assert not torch.equal(found.cpu(), peer.expected(0, 2, 4096))
    assert ranks[0].calls.tolist() == [1] * PROGRAMS


def test_a_trial_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rank whose parts do not come."""
    monkeypatch.setattr(sums, "PATIENCE", 10)
    connection = sums.Connection(0, 2, torch.device(DEVICE), lambda word: [word])
    connection.sum = ranks_of_one_place(2)[0]
    if not ON_CARD:
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    connection.compile()
    assert connection.sum.calls.tolist() == [2] * PROGRAMS
    said = connection.trial()
    assert said is not None and re.fullmatch(r"trial sums came out wrong in \d{4} of 8192 numbers", said)


def test_what_is_not_added_here() -> None:
    alone = ranks_of_one_place(8)[0]
    fitting = torch.empty(limit(8) // 2, dtype=torch.bfloat16, device=DEVICE)
    assert alone.takes(fitting) and not alone.takes(fitting.new_empty(limit(8) // 2 + 2))
    for other in (fitting[:3], fitting[1:3], fitting[:4].float(), fitting[:0], fitting.view(2, -1)[:, :2]):
        assert not alone.takes(other)
    with pytest.raises(ValueError, match=r"float32 \(4,\): expected contiguous bf16"):
        alone.run(fitting[:4].float())
    later = peer.addends(0, 1).to(DEVICE)
    total = torch.empty_like(later.last)
    assert alone.takes(total, later) and not alone.takes(total, Sums(*vars(later).values()))  # torch adds these up
    with pytest.raises(ValueError, match="addends in rows of bf16 too"):
        alone.run(total, replace(later, rows=later.rows.float()))
    with pytest.raises(ValueError, match="partial"):
        alone.run(total.new_empty(4, 130), later)
