"""Sums over ranks through memory that all their cards can write: one launch, deterministic, in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from wellhead.dispatch.spec import KernelBuild
from wellhead.ops.addends import Addends
from wellhead.ops.card import launch
from wellhead.ops.checks import expect
from wellhead.ops.peer_sum_kernel import peer_sum_kernel

WORLDS = (2, 4, 8)
LIMIT = 1 << 20  # bytes of the largest tensor that two ranks add; four add half of it, as each pushes to all others
BLOCK, WARPS = 128, 4  # words of a tile, one a thread: its stores lie side by side
PROGRAMS = 128  # at most; they run at the same time on every card
FOREVER = -1
BUILT = ((4096, 6), (7168, 6))  # channels and addends of a sum that is taken on the way


def limit(world: int) -> int:
    """Bytes of the largest tensor that so many ranks add here."""
    return LIMIT // (world // 2)


def place_words(world: int) -> int:
    """int64 words of the memory that every rank offers, zeros before the first call."""
    return 2 * world * (limit(world) // 4)


@dataclass(frozen=True)
class PeerSum:
    """One rank's half: places int64 [world], the address of every rank's memory; calls int32 [PROGRAMS], zeros; kept:
    what holds that memory. Every rank makes the same calls in the same order, in one stream or in graphs.
    """

    rank: int
    places: torch.Tensor
    calls: torch.Tensor
    kept: object = None

    def takes(self, partial: torch.Tensor, addends: Addends | None = None) -> bool:
        """Whether this tensor is added here: bf16, an even number of them within the limit, four bytes aligned; of
        addends rows of an even number of bf16, unless torch adds them up.
        """
        fits = (
            partial.dtype == torch.bfloat16 and partial.is_contiguous() and partial.numel() % 2 == 0
            and 0 < partial.nbytes <= limit(len(self.places)) and partial.data_ptr() % 4 == 0
        )  # fmt: skip
        if addends is None:
            return fits
        return fits and addends.by_kernel and addends.rows.dtype == torch.bfloat16 and partial.shape[-1] % 2 == 0

    def run(self, partial: torch.Tensor, addends: Addends | None = None, *, patience: int = FOREVER) -> None:
        """partial <- the sum over the ranks, fp32 in their order, rounded once; the same bits on every rank. With
        addends a rank's part is their sum, rounded, and what partial held is not read.

        An empty one compiles and waits for nobody: before the first sum only, since places are used again two calls on.
        """
        if partial.numel() and not self.takes(partial, addends):
            raise ValueError(
                f"a sum of {partial.dtype} {tuple(partial.shape)}: expected contiguous bf16, an even number of them, "
                f"{limit(len(self.places))} bytes at most, addends in rows of bf16 too"
            )
        world, words = len(self.places), partial.numel() // 2
        own: tuple[torch.Tensor | int | None, ...] = (None, None, None, 0, 0)
        width, each = 1, 0
        if addends is not None:
            addends.check()
            expect("partial", partial, tuple(addends.last.shape), torch.bfloat16)
            rows, last = (x.view(torch.int32) for x in (addends.rows, addends.last))
            own = (rows, addends.ids, last, addends.first, addends.count)
            width, each = last.shape[1], addends.ids.shape[1]
        peer_sum_kernel[(min(max(triton.cdiv(words, BLOCK), 1), PROGRAMS),)](
            partial.view(-1).view(torch.int32), *own, self.places, self.calls, self.rank, words, patience,
            **constants(world, width, each), num_warps=WARPS, **launch(),
        )  # fmt: skip


def constants(world: int, width: int, addends: int) -> dict[str, int]:
    """The kernel's constexpr arguments; so many addends a token, rows of `width` words."""
    memory = {"SLOT": limit(world) // 4, "WORLD": world}
    return {**memory, "BLOCK": BLOCK, "PROGRAMS": PROGRAMS, "WIDTH": width, "ADDENDS": addends}


def builds() -> tuple[KernelBuild, ...]:
    """As launched, for every number of ranks; with addends for two."""
    found = []
    summed = {"rows": "*i32", "ids": "*i32", "last": "*i32"}
    for world, d, addends in (*((world, 2, 0) for world in WORLDS), *((WORLDS[0], *built) for built in BUILT)):
        given: dict[str, int | None] = {**constants(world, d // 2, addends), "PDL": True}
        given |= {} if addends else dict.fromkeys(summed)
        signature = {
            "partial": "*i32", **summed, "expert": "i32", "count": "i32", "places": "*i64", "calls": "*i32",
            "rank": "i32", "words": "i32", "patience": "i32", **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        name = f"peer_sum[ranks={world}{f',d={d},addends={addends}' if addends else ''}]"
        found.append(KernelBuild(name, peer_sum_kernel, signature, given, WARPS))
    return tuple(found)
