"""The ranks that hold one model: sums and gathers of tensors, tensors and words from rank 0, and nothing else.

Tensors travel over NCCL on cards, small sums through each other's memory where that can be (`sums`), and over gloo on
the CPU; words (a step's schedule) always over gloo, in a group of their own, since the other ranks wait there for as
long as nobody asks anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist

from wellhead.model import sums as ways
from wellhead.model.split import Split

if TYPE_CHECKING:
    from wellhead.ops.addends import Addends
    from wellhead.ops.peer_sum import PeerSum

IDLE = timedelta(days=365)
WORDS = 4096  # of a message's first part, its length included; longer ones take a second broadcast


class PeerLost(ConnectionError):
    """Another rank is gone, or does not answer."""


class Group:
    """Rank `rank` of `world`; made without arguments it is one rank alone, for which every operation does nothing.

    `sums` is how small tensors are added, and why so; `peers` adds them, where it is not None.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, words: dist.ProcessGroup | None = None, *,
        peers: PeerSum | None = None, sums: tuple[str, str] = ("none", "one rank"),
    ):  # fmt: skip
        if (words is None) != (world == 1):
            raise ValueError(f"a group of {world} ranks without connections; make it with Group.join")
        self.rank, self.world, self._words = rank, world, words
        self._lost = f"rank {rank} lost the other ranks"
        self._peers, self.sums = peers, sums

    @classmethod
    def join(
        cls, rendezvous: str, rank: int, world: int, device: torch.device | str = "cpu", sums: str = "auto"
    ) -> Group:
        """Meet the other ranks at a torch.distributed URL (tcp://host:port on rank 0's host, or file:///path); every
        rank calls this once, with its own rank and device. `sums` is one of `sums.ASKED`; ValueError where an explicit
        one cannot be.
        """
        ways.check(sums, world, torch.device(device).type)
        if world == 1:
            return cls()
        device = torch.device(device)
        on_card = device.type == "cuda"
        if on_card:
            torch.cuda.set_device(device)
        with _naming(f"rank {rank} cannot meet the other ranks at {rendezvous}"):
            dist.init_process_group(
                "nccl" if on_card else "gloo", init_method=rendezvous, rank=rank, world_size=world,
                device_id=device if on_card else None,
            )  # fmt: skip
            words = dist.new_group(backend="gloo", timeout=IDLE)

            def everyone(word: object) -> list[object]:
                told: list[object] = [None] * world
                dist.all_gather_object(told, word, group=words)
                return told

            if not on_card:
                return cls(rank, world, words, sums=("gloo", "ranks on the CPU"))
            peers, name, why = ways.choose(sums, ways.Connection(rank, world, device, everyone), everyone)
            return cls(rank, world, words, peers=peers, sums=(name, why))

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of adding that `reduce` can be told to take: those that are connected."""
        return ("nccl", "one-shot") if self._peers is not None else (self.sums[0],)

    def reduce(self, partial: torch.Tensor, addends: Addends | None = None, *, way: str | None = None) -> None:
        """Add up contiguous tensors of one shape over the ranks, in place; every rank gets the same bits. With addends
        their sum, rounded, is this rank's part, also of one rank alone. way: that one of `ways`, to measure it.
        """
        if self._peers is not None and way != "nccl" and (way is not None or self._peers.takes(partial, addends)):
            self._peers.run(partial, addends)
            return
        if addends is not None:
            addends.add_up(partial)
        if self.world > 1:
            with _naming(self._lost):
                dist.all_reduce(partial)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """[N, V] of every rank's columns [N, V / world], side by side in the order of the ranks."""
        if self.world == 1:
            return part
        rows, columns = part.shape
        parts = part.new_empty(self.world, rows, columns)
        if rows:
            with _naming(self._lost):
                dist.all_gather(list(parts.unbind()), part.contiguous())
        return parts.transpose(0, 1).flatten(1)

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's contiguous tensor in every rank's, which is returned; no host waits for it."""
        if self.world > 1:
            with _naming(self._lost):
                dist.broadcast(tensor, 0)
        return tensor

    def broadcast(self, values: Sequence[int] | None = None) -> list[int]:
        """Rank 0's integers (int64), to every rank; the others give none and wait, for days if need be."""
        if self.rank == 0 and values is None:
            raise ValueError("rank 0 has nothing to tell; give it the values")
        if self.world == 1:
            return list(values or ())
        message = torch.zeros(WORDS, dtype=torch.int64)
        rest = torch.empty(0, dtype=torch.int64)
        if values is not None and self.rank == 0:
            told = torch.tensor([len(values), *values], dtype=torch.int64)
            message[: len(told)] = told[:WORDS]
            rest = told[WORDS:]
        with _naming(self._lost):
            dist.broadcast(message, 0, group=self._words)
            count = int(message[0])
            if count >= WORDS:
                if self.rank:
                    rest = torch.empty(count + 1 - WORDS, dtype=torch.int64)
                dist.broadcast(rest, 0, group=self._words)
        return [*message[1 : 1 + count].tolist(), *rest.tolist()]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            with _naming(self._lost):
                dist.barrier(group=self._words)

    def close(self) -> None:
        """Leave, when every rank does."""
        if self.world > 1:
            self.barrier()
            dist.destroy_process_group()


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Connection errors of torch.distributed (RuntimeError) as PeerLost."""
    try:
        yield
    except RuntimeError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise PeerLost(f"{what}: {said}") from error


ALONE = Group()
WHOLE = Split()


class Reduce(Protocol):
    """`Group.reduce` as models call it."""

    def __call__(self, partial: torch.Tensor, addends: Addends | None = None) -> None: ...
