"""Which way ranks add small tensors: decided together, for a reason that is kept, without any card."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wellhead.cli import EXIT_ERROR, main
from wellhead.model import sums
from wellhead.model.parallel import ALONE, Group, PeerLost

CARD = torch.device("cuda:0")
STEPS = ["reach", "offer", "connect", "compile", "trial"]


class CompilerError(Exception):
    """As Triton's are: no RuntimeError."""


def alone(word: object) -> Sequence[object]:
    """Two ranks in the same situation."""
    return [word, word]


class Fake(sums.Connection):
    """Rank 0 of `world`, on whose way one step fails."""

    def __init__(self, fails: str = "", how: object = None, world: int = 2):
        super().__init__(0, world, CARD, alone)
        self.went: list[str] = []
        for step in STEPS:
            setattr(self, step, lambda step=step: self._go(step, how if step == fails else None))

    def _go(self, step: str, how: Any) -> str | None:
        self.went.append(step)
        if isinstance(how, Exception):
            raise how
        self.sum = "memory"  # type: ignore[assignment]
        return how  # type: ignore[no-any-return]


def test_one_shot_takes_every_step() -> None:
    fake = Fake()
    assert sums.choose("one-shot", fake, alone) == (
        "memory", "one-shot", "asked for by name; bf16 up to 1024 KB, nccl beyond"
    )  # fmt: skip
    assert fake.went == STEPS
    assert sums.choose("one-shot", Fake(world=8), alone)[2] == "asked for by name; bf16 up to 256 KB, nccl beyond"


def test_auto_takes_one_shot_where_it_has_answered_and_every_rank_can() -> None:
    found = sums.choose("auto", Fake(), alone)
    assert found == ("memory", "one-shot", "a trial came out right; bf16 up to 1024 KB, nccl beyond")
    reason = "rank 0: card 0 has no peer access to card 1"
    assert sums.choose("auto", Fake("reach", "card 0 has no peer access to card 1"), alone) == (None, "nccl", reason)
    more, named = Fake(world=4), Fake()
    _, name, why = sums.choose("auto", more, alone)
    assert name == "nccl" and "2 cards so far" in why
    assert sums.choose("nccl", named, alone) == (None, "nccl", "asked for by name")
    assert more.went == named.went == []


@pytest.mark.parametrize(
    ("step", "how", "why"),
    [
        ("reach", "card 0 has no peer access to card 1", "rank 0: card 0 has no peer access to card 1"),
        ("connect", RuntimeError("CUDA driver error: bad\nmore"), "rank 0: RuntimeError: CUDA driver error: bad"),
        ("offer", ImportError("no symmetric memory"), "rank 0: ImportError: no symmetric memory"),
        ("compile", CompilerError("no sm_90a\nmore"), "rank 0: CompilerError: no sm_90a"),
        ("trial", "trial sums came out wrong in 3 of 8192 numbers", "rank 0: trial sums came out wrong in 3"),
    ],
)
def test_what_stops_one_rank_is_the_reason(step: str, how: object, why: str) -> None:
    fake = Fake(step, how)
    with pytest.raises(ValueError, match=f"--sums one-shot: {why}.*; --sums nccl works without"):
        sums.choose("one-shot", fake, alone)
    assert fake.went[-1] == step


def test_another_ranks_reason_stops_this_one() -> None:
    fake = Fake()
    with pytest.raises(ValueError, match="--sums one-shot: rank 1: OutOfMemoryError: 8 MB; "):
        sums.choose("one-shot", fake, lambda word: [word, "OutOfMemoryError: 8 MB"])
    assert fake.went == ["reach"]


def reach(hosts: Sequence[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, peers: bool = True) -> str | None:
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda mine, other: peers)
    return sums.Connection(0, len(hosts), CARD, lambda _: hosts).reach()


def test_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reach([("a", 0), ("a", 1)], monkeypatch) is None
    assert reach([("a", 0), ("b", 0)], monkeypatch) == "the ranks are on 2 hosts"
    assert reach([("a", card) for card in range(3)], monkeypatch) == "3 ranks, expected 2, 4, 8"
    assert reach([("a", 0), ("a", 1)], monkeypatch, False) == "card 0 has no peer access to card 1"


def test_ranks_offer_memory_and_learn_where_the_others_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from wellhead.ops.peer_sum import PROGRAMS, place_words

    buffers = [torch.ones(place_words(2), dtype=torch.int64) for _ in range(2)]
    handle = SimpleNamespace(get_buffer=lambda rank, sizes, dtype: buffers[rank])
    fake = SimpleNamespace(empty=lambda *_, **__: buffers[0], rendezvous=lambda memory, name: handle)
    monkeypatch.setitem(sys.modules, "torch.distributed._symmetric_memory", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.distributed, "_symmetric_memory", fake, raising=False)
    world = SimpleNamespace(group=SimpleNamespace(WORLD=SimpleNamespace(group_name="0")))
    monkeypatch.setattr(sums, "dist", world)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    connection = sums.Connection(1, 2, torch.device("cpu"), alone)
    connection.offer()
    connection.connect()
    assert connection.sum is not None and connection.sum.rank == 1
    assert connection.sum.places.tolist() == [buffer.data_ptr() for buffer in buffers]
    assert connection.sum.calls.tolist() == [0] * PROGRAMS and not buffers[0].any()


class Added:
    """Addends that were added up into these."""

    def __init__(self) -> None:
        self.into: list[torch.Tensor] = []

    def add_up(self, out: torch.Tensor) -> None:
        self.into.append(out)


LATER = Added()  # what the peers do not take


class Counting:
    def __init__(self) -> None:
        self.ran, self.addends = 0, None

    def takes(self, partial: torch.Tensor, addends: Any = None) -> bool:
        return partial.numel() <= 4 and addends is not LATER

    def run(self, partial: torch.Tensor, addends: Any = None) -> None:
        self.ran += 1
        self.addends = addends


def test_small_tensors_go_one_way_and_others_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    peers, reduced = Counting(), []
    monkeypatch.setattr(torch.distributed, "all_reduce", reduced.append)
    group = Group(0, 2, "words", peers=peers, sums=("one-shot", "why"))  # type: ignore[arg-type]
    small, large = torch.zeros(4), torch.zeros(5)
    group.reduce(small)
    group.reduce(large)
    assert peers.ran == 1 and len(reduced) == 1 and reduced[0] is large
    group.reduce(small, way="nccl")
    assert peers.ran == 1 and reduced[1] is small and group.ways == ("nccl", "one-shot")
    ALONE.reduce(large)
    assert len(reduced) == 2 and ALONE.sums == ("none", "one rank")


def test_addends_are_added_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the peers on the way, in a launch of their own in front of NCCL, and without a sum by one rank."""
    peers, reduced, addends = Counting(), [], Added()
    monkeypatch.setattr(torch.distributed, "all_reduce", reduced.append)
    group = Group(0, 2, "words", peers=peers, sums=("one-shot", "why"))  # type: ignore[arg-type]
    small, large = torch.zeros(4), torch.zeros(5)
    group.reduce(small, addends)  # type: ignore[arg-type]
    assert peers.addends is addends and not addends.into and not reduced
    group.reduce(large, addends)  # type: ignore[arg-type]
    group.reduce(small, LATER)  # type: ignore[arg-type]
    ALONE.reduce(small, addends)  # type: ignore[arg-type]
    assert peers.ran == 1 and [into is large for into in addends.into] == [True, False] and LATER.into[0] is small
    assert [total is large for total in reduced] == [True, False]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--tp", "2", "--sums", "two-shot"], "--sums two-shot: expected auto, nccl, one-shot"),
        (["--sums", "one-shot", "--device", "cuda"], "--sums one-shot with one rank, which has nothing to add"),
        (["--tp", "2", "--sums", "nccl"], "--sums nccl on device 'cpu', where gloo adds"),
    ],
)
def test_what_cannot_be_is_refused_at_once(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", *words]) == EXIT_ERROR
    assert reason in capsys.readouterr().err


def test_a_lost_rank_is_said_whatever_the_error_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(partial: torch.Tensor) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(PeerLost, match="rank 0 lost the other ranks: RuntimeError"):
        Group(0, 2, "words").reduce(torch.zeros(1))  # type: ignore[arg-type]


def test_ranks_on_the_cpu_say_that_gloo_adds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="where gloo adds"):
        Group.join(f"file://{tmp_path}/meeting", 0, 2, "cpu", "one-shot")
