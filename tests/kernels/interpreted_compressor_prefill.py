"""The compressor over chunks against the reference and the decode step. Run by test_interpreter.py, or on a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from kernels.interpreted_compressor import DEVICE, EACH_FORM, EACH_LAYOUT, agree, pages, rotations
from wellhead.formats.paged import PagedLayout
from wellhead.ops.compressor import api, reference
from wellhead.ops.compressor.configs import choose_prefill_config
from wellhead.ops.compressor.drawing import EPS, form, make_prefill, prepare, prepare_reference, read, write
from wellhead.ops.compressor.prefill import keep_constants, plan_prefill
from wellhead.ops.compressor.prefill_kernels import keep_kernel
from wellhead.ops.compressor.spec import FORMS
from wellhead.ops.norm_quant.reference import rms_norm
from wellhead.ops.rope.reference import rotate
from wellhead.testing.agreement import results

Chunks = Sequence[tuple[int, int, int]]  # state slot, first position, tokens; slot -1 is padding


@dataclass
class World:
    """A compressor with `slots` rings, full of NaN where nothing was written, and the same projections by position."""

    name: str  # of FORMS
    slots: int = 3
    most: int = 0  # positions of a request

    def __post_init__(self) -> None:
        self.ratio, self.dim, _ = FORMS[self.name]
        generator = torch.Generator().manual_seed(self.ratio + self.dim)
        width = reference.overlap(self.ratio) * self.dim
        self.ape = torch.randn(self.ratio, width, generator=generator)
        self.norm = (1 + torch.randn(self.dim, generator=generator) / 4).bfloat16()
        self.rows = torch.randn(self.slots, self.most, 2 * width, generator=generator)

    def state(self, before: dict[int, int] | None = None) -> torch.Tensor:
        """Rings after `before[slot]` positions of each request."""
        ring, width = reference.ring_rows(self.ratio), self.ape.shape[1]
        state = torch.full((self.slots, ring, 2 * width), torch.nan)
        for slot, count in (before or {}).items():
            position = torch.arange(max(0, count - ring), count)
            state[slot, position % ring] = self.rows[slot, position]
            state[slot, position % ring, width:] += self.ape[position % self.ratio]
        return state

    def batch(self, chunks: Chunks) -> dict[str, torch.Tensor]:
        """What a run takes of these chunks, but state, out and slots; ends in reverse and with an entry of padding."""
        projected, positions, state_slots, firsts = [], [], [], []
        for slot, start, count in chunks:
            firsts += [len(positions)] * count
            positions += range(start, start + count)
            state_slots += [slot] * count
            real = self.rows[slot, start : start + count]
            projected.append(real if slot >= 0 else torch.full_like(self.rows[0, :count], torch.nan))
        ends = [t for t, p in enumerate(positions) if state_slots[t] >= 0 and (p + 1) % self.ratio == 0]
        ends = [*reversed(ends), -1]
        cos, sin = rotations(4096, 7)
        block = torch.tensor([positions[end] // self.ratio for end in ends])
        empty = self.rows[0, :0]
        return {
            "projected": torch.cat([*projected, empty]), "ape": self.ape, "norm": self.norm,
            "positions": torch.tensor(positions, dtype=torch.int32), "firsts": torch.tensor(firsts, dtype=torch.int32),
            "state_slots": torch.tensor(state_slots, dtype=torch.int32), "ends": torch.tensor(ends, dtype=torch.int32),
            "cos": cos[block], "sin": sin[block],
        }  # fmt: skip

    def plan(self) -> Any:
        return plan_prefill(self.ratio, self.dim, EPS, **form(pages(self.name, 1), self.dim))

    def found(self, state: torch.Tensor, chunks: Chunks) -> torch.Tensor:
        """Entries of the batch as stored, a row of 0 for the -1; `state` (on the device) is advanced."""
        batch = {name: x.to(DEVICE) for name, x in self.batch(chunks).items()}
        every = torch.arange(len(batch["ends"]))
        out = pages(self.name, len(every)).view(torch.float8_e4m3fn)
        self.plan().run(**batch, state=state, slots=every.to(DEVICE), out=out)
        return read(out.cpu(), every, self.dim)

    def expected(self, state: torch.Tensor, chunks: Chunks) -> torch.Tensor:
        """The same by the reference, from and into a state on the CPU."""
        real = [chunk for chunk in chunks if chunk[0] >= 0 and chunk[2]]
        batch = self.batch(real)
        counts = torch.tensor([count for _, _, count in real])
        rows = torch.arange(len(real)).repeat_interleave(counts)
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
        slots, positions = torch.tensor([slot for slot, _, _ in real]), batch["positions"].long()
        blocks = reference.completed_blocks(self.ratio, positions, rows, starts, slots)
        kv, gate = batch["projected"].split(self.ape.shape[1], dim=1)
        score = gate + self.ape[positions % self.ratio]
        pooled = reference.advance(state, kv.contiguous(), score, blocks).bfloat16().flip(0)
        rotation = batch["cos"][:-1], batch["sin"][:-1]
        every, out = torch.arange(len(pooled) + 1), pages(self.name, len(pooled) + 1).cpu()
        write(out, every[:-1], rotate(rms_norm(pooled, self.norm, EPS), *rotation))
        return read(out, every, self.dim)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.cpu().nan_to_num(99.0), right.cpu().nan_to_num(99.0))


def check(world: World, before: dict[int, int], chunks: Chunks) -> None:
    """One batch: entries within the budget, the rings exactly, and NaN wherever nothing was written."""
    state, mine = world.state(before), world.state(before).to(DEVICE)
    result, wanted = world.found(mine, chunks), world.expected(state, chunks)
    assert result.shape == wanted.shape and bool(result.isfinite().all())
    assert agree(result, wanted) and same(mine, state)


@pytest.mark.parametrize("start", range(9))
@pytest.mark.parametrize("name", ["c4", "c4 keys"])
def test_ratio_4_from_every_offset_and_of_every_length(name: str, start: int) -> None:
    world = World(name, most=30)
    for count in range(1, 14):
        check(world, {0: start}, [(0, start, count)])


@pytest.mark.parametrize(("start", "count"), [(0, 127), (0, 128), (1, 126), (1, 127), (100, 300), (127, 1), (128, 257)])
def test_ratio_128_around_its_block_ends(start: int, count: int) -> None:
    check(World("c128", most=400), {0: start}, [(0, start, count)])


@EACH_FORM
def test_requests_and_padding_in_one_batch(name: str) -> None:
    """Slots out of order, a chunk of one token, one without any, padding (NaN) between and behind."""
    ratio = FORMS[name][0]
    world = World(name, slots=4, most=3 * ratio + 5)
    chunks = [
        (2, 2 * ratio - 1, 1), (-1, ratio - 3, 3), (0, ratio - 2, 2 * ratio + 3), (3, 5, 0), (1, 0, ratio), (-1, 0, 5),
    ]  # fmt: skip
    check(world, {2: 2 * ratio - 1, 0: ratio - 2, 3: 5}, chunks)
    alone = world.state({0: ratio - 2}).to(DEVICE)
    together = world.state({2: 2 * ratio - 1, 0: ratio - 2, 3: 5}).to(DEVICE)
    result = world.found(together, chunks)
    assert same(world.found(alone, [chunks[2]])[:-1], result[1:-2])
    assert same(alone[0], together[0]) and bool(alone[1:].isnan().all())


@EACH_FORM
def test_a_request_cut_into_chunks_gives_the_entries_and_the_ring_of_the_whole(name: str) -> None:
    ratio = FORMS[name][0]
    total = 2 * ratio + ratio // 2 + 7
    world = World(name, most=total)
    whole = world.state().to(DEVICE)
    entries = world.found(whole, [(1, 0, total)])[:-1].flip(0)
    for step in (ratio - 1, ratio + 3):
        state, parts = world.state().to(DEVICE), []
        for start in range(0, total, step):
            parts.append(world.found(state, [(1, start, min(step, total - start))])[:-1].flip(0))
        assert same(torch.cat(parts), entries) and same(state, whole)


@EACH_FORM
def test_token_by_token_the_decode_step_gives_the_same(name: str) -> None:
    ratio, dim, _ = FORMS[name]
    start, total = (0, 21) if ratio == 4 else (125, 259)
    world, decode = World(name, most=total), api.plan_decode(ratio, dim, EPS, **form(pages(name, 1), dim))
    chunked, stepped = (world.state({1: start}).to(DEVICE) for _ in range(2))
    parts: list[torch.Tensor] = []
    entries = world.found(chunked, [(1, start, total - start)])[:-1].flip(0)
    out, zero = pages(name, 1), torch.tensor([0])
    cos, sin = rotations(4096, 7)
    for position in range(start, total):
        block = slice(position // ratio, position // ratio + 1)
        given = (
            world.rows[1, position : position + 1], world.ape, torch.tensor([position]), torch.tensor([1]), stepped,
            world.norm, cos[block], sin[block], zero, out,
        )  # fmt: skip
        decode.run(*(x.to(DEVICE) for x in given))
        if (position + 1) % ratio == 0:
            parts.append(read(out.cpu(), zero, dim))
    assert len(parts) > 1 and agree(torch.cat(parts), entries) and same(stepped, chunked)


@EACH_FORM
def test_cases_agree_with_their_reference(name: str) -> None:
    tokens, requests = (64, 2) if FORMS[name][0] == 4 else (280, 2)
    inputs = make_prefill(tokens, requests, *FORMS[name], torch.Generator(DEVICE).manual_seed(3), DEVICE)
    before, (wanted,) = inputs["state"].clone(), results(prepare_reference(inputs))
    (result,) = results(prepare(inputs))
    assert float(wanted.float().abs().max()) > 1 and agree(result, wanted) and torch.equal(inputs["state"], before)


@EACH_LAYOUT
def test_index_keys_of_a_chunk_are_those_of_decode(layout: PagedLayout) -> None:
    """Byte for byte, where a list with -1 says; nothing else is written."""
    world, out = World("c4 keys", most=12), [layout.allocate(2, 64, torch.uint8).to(DEVICE) for _ in range(2)]
    slots = torch.tensor([64, 3, 5, -1], device=DEVICE)  # of the blocks, the last one first
    batch = {name: x.to(DEVICE) for name, x in world.batch([(0, 0, 12)]).items()}
    state = world.state().to(DEVICE)
    plan_prefill(4, 128, EPS, keys=layout).run(**batch, state=state, slots=slots, out=out[0])
    decode, state = api.plan_decode(4, 128, EPS, keys=layout), world.state().to(DEVICE)
    for token in range(12):
        one = slice(token, token + 1)
        given = {name: batch[name][one] for name in ("projected", "positions", "state_slots")}
        block = 2 - token // 4
        turn = {name: batch[name][block : block + 1] for name in ("cos", "sin")}
        tail = {"ape": batch["ape"], "norm": batch["norm"], "slots": slots[block : block + 1], "out": out[1]}
        decode.run(**given, **turn, **tail, state=state)
    assert torch.equal(*out)
    written = out[0][:, : 64 * layout.data_bytes].view(2, 64, -1).cpu().any(-1).nonzero().tolist()
    assert written == [[0, 3], [0, 5], [1, 0]]


def test_state_slots_past_two_gigabytes() -> None:
    world, chunk, far = World("c4", most=12), (0, 3, 9), 2**29 // (16 * 2048) + 2
    near = world.state({0: 3}).to(DEVICE)
    state = torch.empty(far + 1, 16, 2048, device=DEVICE)
    state[far] = near[0]
    batch = {name: x.to(DEVICE) for name, x in world.batch([chunk]).items()}
    batch["state_slots"] += far
    every, out = torch.arange(len(batch["ends"])), pages("c4", 8)
    world.plan().run(**batch, state=state, slots=every.to(DEVICE), out=out)
    assert same(world.found(near, [chunk]), read(out.cpu(), every, 512)) and same(state[far], near[0])


def test_ends_inside_a_block_or_in_padding_and_empty_lists_store_nothing() -> None:
    world = World("c4", most=12)
    batch = {name: x.to(DEVICE) for name, x in world.batch([(0, 0, 6), (-1, 3, 5)]).items()}
    batch |= {"ends": torch.tensor([2, 6, -1], device=DEVICE)}
    batch |= {name: torch.zeros(3, 32, device=DEVICE) for name in ("cos", "sin")}
    out, slots = torch.full_like(pages("c4", 3), 9), torch.arange(3, device=DEVICE)
    state, plan = world.state().to(DEVICE), world.plan()
    plan.run(**batch, state=state, slots=slots, out=out)
    assert bool((out == 9).all()) and bool(state[0, :6].isfinite().all()) and bool(state[0, 6:].isnan().all())
    none: dict[str, Any] = {name: batch[name][:0] for name in ("ends", "cos", "sin")}
    again = world.state().to(DEVICE)
    plan.run(**{**batch, **none}, state=again, slots=slots[:0], out=out)
    assert same(again, state)
    none |= {name: batch[name][:0] for name in ("projected", "positions", "state_slots", "firsts")}
    plan.run(**{**batch, **none}, state=again, slots=slots[:0], out=out)
    assert same(again, state)


def test_tokens_that_a_later_one_replaces_write_nothing() -> None:
    """The first program of the second launch alone: of its tokens only those without a successor in the ring."""
    world, config = World("c4", most=20), choose_prefill_config(4, 512)
    assert config.tokens == 16
    batch = {name: x.to(DEVICE) for name, x in world.batch([(0, 0, 20), (1, 0, 1)]).items()}
    given = (batch[name] for name in ("projected", "ape", "positions", "state_slots"))
    state = world.state().to(DEVICE)
    constants = {**keep_constants(4, 512, config), "PDL": False}
    keep_kernel[(1, 2048 // config.columns)](*given, state, 21, **constants, num_warps=8)
    assert state.isfinite().all(-1).nonzero().tolist() == [[0, row] for row in range(4, 16)]
    assert bool(state[1:].isnan().all())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"ratio=8: 4 or 128"):
        plan_prefill(8, 512, EPS)
    with pytest.raises(ValueError, match=r"page_size=64, dim=128, no keys: a power of two of records of 512"):
        plan_prefill(4, 128, EPS, page_size=64)
    world = World("c4", most=4)
    batch = {name: x.to(DEVICE) for name, x in world.batch([(0, 0, 4)]).items()}
    slots, out = torch.zeros(2).long().to(DEVICE), pages("c4", 2)
    with pytest.raises(ValueError, match=r"firsts is .* expected contiguous torch.int32 or torch.int64 \(4,\)"):
        given = {**batch, "firsts": batch["firsts"][:3]}
        world.plan().run(**given, state=world.state().to(DEVICE), slots=slots, out=out)
