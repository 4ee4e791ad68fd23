"""How ranks on cards add small tensors: over NCCL, or through each other's memory.

The way there is gone together: every rank takes the same steps, and what stops one of them stops all with its reason.
Memory comes from torch's symmetric memory, without NVLink multicast; `ops.peer_sum` is what adds. torch's own one-shot
sum rounds to bf16 after every rank, which for more than two ranks is not the sum rounded once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from wellhead.ops.addends import Addends

if TYPE_CHECKING:
    from wellhead.ops.peer_sum import PeerSum

Asked = Literal["auto", "nccl", "one-shot"]
ASKED: tuple[Asked, ...] = ("auto", "nccl", "one-shot")
PATIENCE = 20_000_000  # looks at a part that does not come, some seconds: the trial alone gives up
PROVEN = 2  # ranks with which an engine has answered over one-shot sums (docs/log.md)

Everyone = Callable[[object], Sequence[object]]
"""(this rank's word) -> every rank's, in their order."""


class Connection:
    """One rank's way to the others' memory, in steps that return why it ends there, or None."""

    def __init__(self, rank: int, world: int, device: torch.device, everyone: Everyone):
        self.rank, self.world, self.device = rank, world, device
        self._everyone = everyone
        self.sum: PeerSum | None = None

    def reach(self) -> str | None:
        """Whether all cards are in one host, and this one reaches the others."""
        told: Sequence[Any] = self._everyone((socket.gethostname(), self.device.index))
        hosts, cards = zip(*told, strict=True)
        from wellhead.ops.peer_sum import WORLDS

        if self.world not in WORLDS:
            return f"{self.world} ranks, expected {', '.join(map(str, WORLDS))}"
        if len(set(hosts)) > 1:
            return f"the ranks are on {len(set(hosts))} hosts"
        for card in cards:
            if card != self.device.index and not torch.cuda.can_device_access_peer(self.device.index, card):
                return f"card {self.device.index} has no peer access to card {card}"
        return None

    def offer(self) -> None:
        """Memory that the others may write; before `connect`, where who came waits for those who failed here."""
        import torch.distributed._symmetric_memory as symmetric

        from wellhead.ops.peer_sum import place_words

        self._own = symmetric.empty(place_words(self.world), dtype=torch.int64, device=self.device)
        self._own.zero_()
        torch.cuda.synchronize(self.device)

    def connect(self) -> None:
        """Learn where the others' memory is."""
        import torch.distributed._symmetric_memory as symmetric

        from wellhead.ops.peer_sum import PROGRAMS, PeerSum

        everyone = dist.group.WORLD
        assert everyone is not None
        handle = symmetric.rendezvous(self._own, everyone.group_name)
        every = [handle.get_buffer(rank, self._own.shape, torch.int64) for rank in range(self.world)]
        places = torch.tensor([memory.data_ptr() for memory in every], device=self.device)
        calls = torch.zeros(PROGRAMS, dtype=torch.int32, device=self.device)
        self.sum = PeerSum(self.rank, places, calls, (self._own, handle, every))

    def compile(self) -> None:
        """Calls that add nothing, so that the trial's patience is not spent on compiling."""
        assert self.sum is not None
        nothing = _trial_parts(1, tokens=0)[0].to(self.device)
        self.sum.run(torch.empty_like(nothing.last))
        self.sum.run(torch.empty_like(nothing.last), nothing)
        torch.cuda.synchronize(self.device)

    def trial(self) -> str | None:
        """Sums whose result is known, of parts as they are and added up on the way; memory that a bridge or IOMMU loses
        shows here.
        """
        assert self.sum is not None
        parts = _trial_parts(self.world)
        totals = [part.total() for part in parts]
        expected = totals[0].float()
        for total in totals[1:]:
            expected = expected + total.float()
        own = parts[self.rank].to(self.device)
        found, added = totals[self.rank].to(self.device), torch.empty_like(own.last)
        self.sum.run(found, patience=PATIENCE)
        self.sum.run(added, own, patience=PATIENCE)
        wrong = int(sum((each.cpu() != expected.bfloat16()).sum() for each in (found, added)))
        return f"trial sums came out wrong in {wrong} of {2 * found.numel()} numbers" if wrong else None


def _trial_parts(world: int, tokens: int = 32) -> list[Addends]:
    """Every rank's part of the trial, the same drawn by all: experts that are its own, another's and nobody's."""
    places, width = 6, 128
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-1, 4 * world, (tokens, places), generator=generator, dtype=torch.int32)

    def drawn(rows: int) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator).bfloat16()

    return [Addends(drawn(tokens * places), ids, 4 * rank, 4, drawn(tokens)) for rank in range(world)]


def check(asked: str, world: int, device_type: str) -> None:
    """ValueError for a way of adding that does not exist, or not there."""
    if asked not in ASKED:
        raise ValueError(f"--sums {asked}: expected {', '.join(ASKED)}")
    if asked != "auto" and world == 1:
        raise ValueError(f"--sums {asked} with one rank, which has nothing to add; leave it out or give --tp")
    if asked != "auto" and device_type != "cuda":
        raise ValueError(f"--sums {asked} on device {device_type!r}, where gloo adds; leave it out, or --device cuda")


def agreed(steps: Sequence[Callable[[], str | None]], everyone: Everyone) -> str | None:
    """Go through the steps with all ranks; why one of them could not, None if all could."""
    for step in steps:
        try:
            said = step()
        except Exception as error:  # torch calls its memory an alpha, and Triton's errors are nobody's children
            said = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        for rank, reason in enumerate(everyone(said)):
            if reason is not None:
                return f"rank {rank}: {reason}"
    return None


def choose(asked: str, connection: Connection, everyone: Everyone) -> tuple[PeerSum | None, str, str]:
    """(what adds small tensors, its name, why) on cards: "auto" takes one-shot sums for as many ranks as an engine has
    answered with on cards, if every rank can. ValueError where "one-shot" was asked for and cannot be.
    """
    if asked == "nccl":
        return None, "nccl", "asked for by name"
    if asked == "auto" and connection.world != PROVEN:
        return None, "nccl", f"one-shot sums have answered with {PROVEN} cards so far; --sums one-shot asks for them"
    steps = (connection.reach, connection.offer, connection.connect, connection.compile, connection.trial)
    against = agreed(steps, everyone)
    if against is not None and asked == "auto":
        return None, "nccl", against
    if against is not None:
        raise ValueError(f"--sums one-shot: {against}; --sums nccl works without each other's memory")
    from wellhead.ops.peer_sum import limit

    most, why = limit(connection.world) // 1024, "a trial came out right" if asked == "auto" else "asked for by name"
    return connection.sum, "one-shot", f"{why}; bf16 up to {most} KB, nccl beyond"
