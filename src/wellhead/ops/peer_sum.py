"""Sums over ranks through memory that all their cards can write: one launch, deterministic, in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from wellhead.dispatch.spec import KernelBuild
from wellhead.ops.card import launch
from wellhead.ops.peer_sum_kernel import peer_sum_kernel

WORLDS = (2, 4, 8)
LIMIT = 1 << 20  # bytes of the largest tensor that two ranks add; four add half of it, as each pushes to all others
BLOCK, WARPS = 128, 4  # words of a tile, one a thread: its stores lie side by side
PROGRAMS = 128  # at most; they run at the same time on every card
FOREVER = -1


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

    def takes(self, partial: torch.Tensor) -> bool:
        """Whether this tensor is added here: bf16, an even number of them within the limit, four bytes aligned."""
        return (
            partial.dtype == torch.bfloat16 and partial.is_contiguous() and partial.numel() % 2 == 0
            and 0 < partial.nbytes <= limit(len(self.places)) and partial.data_ptr() % 4 == 0
        )  # fmt: skip

    def run(self, partial: torch.Tensor, patience: int = FOREVER) -> None:
        """partial <- the sum over the ranks, fp32 in their order, rounded once; the same bits on every rank.

        An empty one compiles and waits for nobody: before the first sum only, since places are used again two calls on.
        """
        if partial.numel() and not self.takes(partial):
            raise ValueError(
                f"a sum of {partial.dtype} {tuple(partial.shape)}: expected contiguous bf16, an even number of them, "
                f"{limit(len(self.places))} bytes at most"
            )
        world, words = len(self.places), partial.numel() // 2
        peer_sum_kernel[(min(max(triton.cdiv(words, BLOCK), 1), PROGRAMS),)](
            partial.view(-1).view(torch.int32), self.places, self.calls, self.rank, words, patience,
            SLOT=limit(world) // 4, WORLD=world, BLOCK=BLOCK, PROGRAMS=PROGRAMS, num_warps=WARPS, **launch(),
        )  # fmt: skip


def builds() -> tuple[KernelBuild, ...]:
    """As launched, for every number of ranks."""
    found = []
    for world in WORLDS:
        given = {"SLOT": limit(world) // 4, "WORLD": world, "BLOCK": BLOCK, "PROGRAMS": PROGRAMS, "PDL": True}
        signature = {
            "partial": "*i32", "places": "*i64", "calls": "*i32", "rank": "i32", "words": "i32", "patience": "i32",
            **dict.fromkeys(given, "constexpr"),
        }  # fmt: skip
        found.append(KernelBuild(f"peer_sum[ranks={world}]", peer_sum_kernel, signature, given, WARPS))
    return tuple(found)
