"""The compressor's decode step against the reference. Run by test_interpreter.py, or natively on a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from wellhead.formats import index_key, kv_record
from wellhead.formats.paged import PagedLayout
from wellhead.ops.compressor import api, reference
from wellhead.ops.compressor.drawing import EPS, form, make, prepare, prepare_reference, read, write
from wellhead.ops.compressor.kernels import store_entry
from wellhead.ops.compressor.spec import FORMS, SPEC
from wellhead.ops.indexer import api as indexer_api
from wellhead.ops.indexer import reference as indexer
from wellhead.ops.norm_quant.reference import rms_norm
from wellhead.ops.rope.reference import rotate
from wellhead.testing.agreement import results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EACH_FORM = pytest.mark.parametrize("name", FORMS)
EACH_LAYOUT = pytest.mark.parametrize("layout", indexer_api.LAYOUTS.values(), ids=indexer_api.LAYOUTS)


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Within the budget, and all but a few roundings alike."""
    left, right = left.cpu().float(), right.cpu().float()
    bound = SPEC.error.absolute + SPEC.error.relative * right.abs()
    return bool(((left - right).abs() <= bound).all()) and float((left != right).float().mean()) < 0.01


def pages(name: str, count: int) -> torch.Tensor:
    """Empty ones for so many entries of a form."""
    page = FORMS[name][2]
    if page:
        return kv_record.allocate_pages(-(-count // page), page).to(DEVICE)
    return index_key.allocate_pages(index_key.FP8, -(-count // index_key.PAGE_SIZE)).to(DEVICE)


def rotations(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.randn(tokens, 32, generator=torch.Generator().manual_seed(seed)) * 3
    return angle.cos(), angle.sin()


@EACH_FORM
def test_cases_agree_with_their_reference(name: str) -> None:
    inputs = make(3, *FORMS[name], torch.Generator(DEVICE).manual_seed(2), DEVICE)
    states = [inputs["state"].clone() for _ in range(2)]
    (result,) = results(prepare({**inputs, "state": states[0]}))
    (wanted,) = results(prepare_reference({**inputs, "state": states[1]}))
    assert float(wanted.float().abs().max()) > 1 and agree(result, wanted)
    assert torch.equal(*states) and not torch.equal(states[0], inputs["state"])


@EACH_FORM
def test_requests_grow_from_nothing_in_slots_full_of_nan(name: str) -> None:
    """Three requests out of step, over two or more blocks: what was never written is never read."""
    ratio, dim, _ = FORMS[name]
    width, generator = reference.overlap(ratio) * dim, torch.Generator().manual_seed(4)
    slots, first = torch.tensor([4, 0, 2]), torch.tensor([0, 1, ratio - 1])
    if ratio == 128:  # only the neighbourhood of two block ends
        first = torch.tensor([126, 127, 254])
    state = torch.full((5, reference.ring_rows(ratio), 2 * width), torch.nan)
    ape, norm = torch.randn(ratio, width, generator=generator), torch.rand(dim, generator=generator).bfloat16()
    for slot, position in zip(slots.tolist(), first.tolist(), strict=True):
        written = torch.arange(max(0, position - reference.ring_rows(ratio)), position)
        rows = torch.randn(len(written), 2 * width, generator=generator)
        state[slot, written % reference.ring_rows(ratio)] = rows
    mine = state.clone().to(DEVICE)
    decode, ended = api.plan_decode(ratio, dim, EPS, **form(pages(name, 3), dim)), 0
    starts, every = torch.arange(4), torch.arange(3)
    for step in range(10 if ratio == 4 else 4):
        positions, projected = first + step, torch.randn(3, 2 * width, generator=generator)
        cos, sin = rotations(3, step)
        blocks = reference.completed_blocks(ratio, positions, every, starts, slots)
        score = projected[:, width:] + ape[positions % ratio]
        pooled = reference.advance(state, projected[:, :width].contiguous(), score, blocks).bfloat16()
        wanted, out = pages(name, 3).cpu(), pages(name, 3)
        write(wanted, every[blocks.token], rotate(rms_norm(pooled, norm, EPS), cos[blocks.token], sin[blocks.token]))
        given = (projected, ape, positions.int(), slots.int())
        rest = (norm, cos, sin, every)
        decode.run(*(x.to(DEVICE) for x in given), mine, *(x.to(DEVICE) for x in rest), out)
        found = read(out.cpu(), every, dim)
        assert bool(found.isfinite().all()) and agree(found, read(wanted, every, dim))
        assert torch.equal(mine.cpu().nan_to_num(99.0), state.nan_to_num(99.0))
        ended += len(blocks.token)
    assert ended >= 3


def ended_step(tokens: int, name: str = "c4") -> dict[str, Any]:
    return make(tokens, *FORMS[name], torch.Generator(DEVICE).manual_seed(6), DEVICE)


def run(inputs: dict[str, Any]) -> None:
    api.plan_decode(4, 512, EPS, page_size=64).run(**inputs)


@triton.jit
def store_kernel(entries, slots, out, STRIDE, D: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    store_entry(tl.load(entries + at * D + tl.arange(0, D)), at, slots, out, STRIDE, D, PAGE, KEYS)


@pytest.mark.parametrize("page_size", [64, 2])
def test_records_are_the_formats_bytes_of_the_entries(page_size: int) -> None:
    """Rounding an entry on the card or in torch gives the same page; of padded pages, the last one's bytes too."""
    size = 10.0 ** torch.linspace(-3, 2, 512)
    entries = (torch.randn(5, 512, generator=torch.Generator().manual_seed(7)) * size).bfloat16()
    entries[0, :448] = 0
    slots = torch.tensor([1, -1, page_size, 2 * page_size - 1, 0])
    wanted = torch.full_like(kv_record.allocate_pages(2, page_size), 9)
    pool = torch.full((2, wanted.shape[1] + 64), 9, dtype=torch.uint8, device=DEVICE)
    store_kernel[(5,)](entries.to(DEVICE), slots.to(DEVICE), pool, pool.stride(0), D=512, PAGE=page_size, KEYS=0)
    kv_record.write(wanted, slots, entries)
    found = pool.cpu()
    assert torch.equal(found[:, : wanted.shape[1]], wanted) and bool((found[:, wanted.shape[1] :] == 9).all())


@EACH_LAYOUT
@pytest.mark.parametrize("page", [0, 2**31 // 8192 + 3])
def test_index_keys_are_the_turned_entries_rounded(layout: PagedLayout, page: int) -> None:
    """As the records; a page of the cache whose bytes need 64 bits."""
    entries = torch.randn(20, 128, generator=torch.Generator().manual_seed(7)).bfloat16()
    slots = torch.arange(20) * 3
    slots[[1, 7]] = -1
    wanted, width = layout.allocate(1, 64, torch.uint8), layout.page_stride(64)
    write(wanted, slots, entries)
    pool = torch.empty(page + 1, width + 64, dtype=torch.uint8, device=DEVICE)
    pool[page:] = 0
    there, bits = torch.where(slots >= 0, slots + 64 * page, -1).to(DEVICE), 8 * layout.data_bytes // 128
    store_kernel[(20,)](entries.to(DEVICE), there, pool, pool.stride(0), D=128, PAGE=0, KEYS=bits)
    every = torch.arange(64)
    got, expected = (indexer.read_keys(c, every) for c in (pool[page:, :width].cpu().contiguous(), wanted))
    assert bool((got != 0).any()) and torch.equal((got == 0).all(1), (expected == 0).all(1))
    # the sum's order may move a bf16 rounding, and that a code, rarely
    assert float((got != expected).float().mean()) < 0.01
    assert bool(((got - expected).abs() <= 0.5 * expected.abs() + 0.6).all())
    assert not bool(pool[page:, width:].any())


@EACH_LAYOUT
def test_keys_of_padded_pages(layout: PagedLayout) -> None:
    inputs = ended_step(20, "c4 keys")
    inputs["out"] = layout.allocate(2, 64, torch.uint8).to(DEVICE)
    (wanted,) = results(prepare_reference(inputs))
    width = inputs["out"].shape[1]
    pool = torch.full((2, width + 64), 9, dtype=torch.uint8, device=DEVICE)
    pool[:, :width] = 0
    api.plan_decode(4, 128, EPS, keys=layout).run(**{**inputs, "out": pool[:, :width]})
    found = read(pool[:, :width].contiguous(), inputs["slots"], 128).cpu()
    assert float((found != wanted).float().mean()) < 0.01 and bool((pool[:, width:] == 9).all())


def test_padding_changes_nothing_and_a_token_inside_a_block_stores_no_entry() -> None:
    inputs = ended_step(3)
    inputs["state_slots"][0] = -1
    inputs["positions"][1] -= 1
    inputs["slots"][2] = -1
    before = inputs["state"].clone()
    run(inputs)
    assert not bool(inputs["out"].any())
    changed = (inputs["state"] != before).any(-1).nonzero().tolist()
    rows = [[int(inputs["state_slots"][t]), int(inputs["positions"][t]) % 16] for t in (1, 2)]
    assert changed == sorted(rows)
    run({name: x[:0] if name not in ("state", "ape", "norm", "out") else x for name, x in inputs.items()})


def test_neighbours_and_integer_widths_do_not_change_a_bit() -> None:
    inputs = ended_step(5)
    alone = {**inputs, "state": inputs["state"].clone(), "out": inputs["out"].clone()}
    run(inputs)
    for token in range(5):
        one = {
            name: x[token : token + 1].contiguous() if name not in ("state", "ape", "norm", "out") else x
            for name, x in alone.items()
        }
        run({**one, "positions": one["positions"].long(), "state_slots": one["state_slots"].long()})
    assert torch.equal(alone["out"], inputs["out"]) and torch.equal(alone["state"], inputs["state"])


def test_slots_past_two_gigabytes() -> None:
    """Record slots and state slots whose byte offsets need 64 bits; only what is named is touched."""
    inputs = ended_step(1)
    far_page, far_slot = 2**31 // inputs["out"].shape[1] + 2, 2**29 // (16 * 2048) + 2
    out = torch.empty(far_page + 1, inputs["out"].shape[1], dtype=torch.uint8, device=DEVICE)
    state = torch.empty(far_slot + 1, 16, 2048, device=DEVICE)
    state[far_slot] = inputs["state"][inputs["state_slots"][0]]
    slot = inputs["slots"] % 64 + far_page * 64
    run({**inputs, "out": out, "state": state, "slots": slot, "state_slots": torch.full_like(slot, far_slot)})
    run(inputs)
    assert torch.equal(
        kv_record.read(out[far_page:], slot - far_page * 64), kv_record.read(inputs["out"], inputs["slots"])
    )
    assert torch.equal(state[far_slot], inputs["state"][inputs["state_slots"][0]])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"ratio=8: 4 or 128"):
        api.plan_decode(8, 512, EPS)
    for dim, page_size in ((128, 64), (512, 0), (512, 48)):
        with pytest.raises(ValueError, match=rf"page_size={page_size}, dim={dim}, no keys: a power of two of records"):
            api.plan_decode(4, dim, EPS, page_size=page_size)
    for dim, layout in ((512, index_key.FP8), (128, kv_record.LAYOUT)):
        with pytest.raises(ValueError, match=rf"keys='{layout.name}', dim={dim}, .*: 'FP8 index key' or 'FP4 index"):
            api.plan_decode(4, dim, EPS, keys=layout)
    inputs = ended_step(1)
    with pytest.raises(ValueError, match=r"expected pages of bytes \[pages, 8448\] \(FP8 index key, 64 keys\)"):
        narrow = index_key.allocate_pages(index_key.FP4, 2).to(DEVICE)
        api.plan_decode(4, 128, EPS, keys=index_key.FP8).run(**{**ended_step(1, "c4 keys"), "out": narrow})
    with pytest.raises(ValueError, match=r"expected pages of bytes \[pages, 37440\] \(64 packed records\)"):
        run({**inputs, "out": inputs["out"][:, :4352].contiguous()})
    with pytest.raises(ValueError, match=r"projected is .* expected contiguous torch.float32 \(1, 2048\)"):
        run({**inputs, "projected": inputs["projected"].bfloat16()})
