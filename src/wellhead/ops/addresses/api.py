"""A step's addresses as a plan: the buffers that all layers read, filled on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from wellhead.ops import scratch
from wellhead.ops.addresses.reference import Entries, Window
from wellhead.ops.card import launch
from wellhead.ops.checks import expect

BLOCK = 256  # pages or entries a program
ALIGNED = 16  # rows of all slots are a multiple of it


@dataclass(frozen=True)
class Wanted:
    """Of one ratio: `most` entries are chosen at most; `every`: slots of all visible entries are wanted."""

    most: int
    every: bool


@dataclass(frozen=True)
class Addresses:
    """`reference.window` and `reference.entries` of each ratio for up to `tokens` tokens and tables `pages` wide.

    run(positions int64 [T], rows i32 [T], owners int64 [T], page_table, window_table i32 [R, P], freqs {ratio: fp32
    [32]}, ends {ratio: i32 [E]} or None) -> (Window, {ratio: Entries}), in buffers of this plan that the next run
    overwrites. T may be 0. One launch, and one a ratio; allocates and synchronises nothing.
    """

    tokens: int
    pages: int
    window: int
    page: int
    wanted: Mapping[int, Wanted]
    integers: torch.Tensor  # int64, cut to size by each run
    small: torch.Tensor  # int32
    rotation: torch.Tensor  # fp32

    def run(
        self, positions: torch.Tensor, rows: torch.Tensor, owners: torch.Tensor, page_table: torch.Tensor,
        window_table: torch.Tensor, freqs: Mapping[int, torch.Tensor], ends: Mapping[int, torch.Tensor] | None = None,
    ) -> tuple[Window, dict[int, Entries]]:  # fmt: skip
        from wellhead.ops.addresses import kernels

        tokens, pages = positions.shape[0], page_table.shape[-1]
        if tokens > self.tokens or pages > self.pages:
            raise ValueError(f"{tokens} tokens, {pages} pages; the plan was made for {self.tokens} and {self.pages}")
        expect("positions", positions, (tokens,), torch.int64)
        expect("owners", owners, (tokens,), torch.int64)
        expect("rows", rows, (tokens,), torch.int32)
        for name, table in (("page_table", page_table), ("window_table", window_table)):
            expect(name, table, (page_table.shape[0], pages), torch.int32)
        integers, small, rotation = _Cutter(self.integers), _Cutter(self.small), _Cutter(self.rotation)
        window = Window(integers.take(tokens), integers.take(tokens, self.window), small.take(tokens, pages))
        found: dict[int, Entries] = {}
        for ratio, wanted in self.wanted.items():
            expect(f"freqs[{ratio}]", freqs[ratio], (32,), torch.float32)
            count = tokens
            if ends is not None:
                count = len(ends[ratio])
                expect(f"ends[{ratio}]", ends[ratio], (count,), torch.int32)
            if count > self.tokens:
                raise ValueError(f"{count} entries of ratio {ratio} end; the plan was made for {self.tokens} tokens")
            width = -(-pages * (self.page // ratio) // ALIGNED) * ALIGNED if wanted.every else 0
            found[ratio] = Entries(
                small.take(tokens), small.take(tokens), integers.take(count), rotation.take(count, 32),
                rotation.take(count, 32), integers.take(tokens, width),
            )  # fmt: skip
        if not tokens:
            return window, found
        common, options = (positions, rows, owners, page_table), {"num_warps": 4, **launch()}
        kernels.token_kernel[(tokens, 1 + -(-pages // BLOCK))](
            *common, window_table, *window, pages, **token_constants(self.window, self.page), **options
        )
        for ratio, entries in found.items():
            given, width, count = ends[ratio] if ends else None, entries.slots.shape[1], len(entries.entry_slots)
            kernels.ratio_kernel[(max(tokens, count), 1 + -(-width // BLOCK))](
                *common, freqs[ratio], given, *entries, tokens, count, pages, width, self.wanted[ratio].most,
                **ratio_constants(ratio, self.page), **options,
            )  # fmt: skip
        return window, found


class _Cutter:
    """Hands out consecutive parts of a buffer, each aligned to 16 elements."""

    def __init__(self, buffer: torch.Tensor):
        self._buffer, self._at = buffer, 0

    def take(self, *shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        part = self._buffer[self._at : self._at + count].view(shape)
        self._at += -(-count // ALIGNED) * ALIGNED
        return part


def token_constants(window: int, page: int) -> dict[str, int]:
    return {"WINDOW": window, "PAGE": page, "BLOCK": BLOCK}


def ratio_constants(ratio: int, page: int) -> dict[str, int]:
    return {"RATIO": ratio, "SIZE": page // ratio, "BLOCK": BLOCK}


def supports(window: int, page: int, ratios: tuple[int, ...]) -> str | None:
    """None, or why these sizes cannot run."""
    if window < 1 or window & (window - 1):
        return f"window={window}: a power of two"
    wrong = [ratio for ratio in ratios if ratio < 1 or page % ratio]
    return f"ratios {wrong}: divisors of the page, {page} tokens" if wrong else None


def plan(
    tokens: int, pages: int, window: int, page: int, wanted: Mapping[int, Wanted], *, device: torch.device | str
) -> Addresses:
    """Allocate for at most `tokens` tokens of requests of at most `pages` pages of `page` tokens."""
    why = supports(window, page, tuple(wanted))
    if why is not None:
        raise ValueError(f"addresses cannot be planned: {why}")
    every = sum(pages * (page // ratio) + ALIGNED for ratio, of in wanted.items() if of.every)
    room = ALIGNED * (2 + 3 * len(wanted))
    integers = tokens * (1 + window + len(wanted) + every) + room
    return Addresses(
        tokens, pages, window, page, dict(wanted),
        scratch.empty(integers, dtype=torch.int64, device=device),
        scratch.empty(tokens * (pages + 2 * len(wanted)) + room, dtype=torch.int32, device=device),
        scratch.empty(tokens * 64 * len(wanted) + room, dtype=torch.float32, device=device),
    )  # fmt: skip
