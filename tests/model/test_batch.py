"""Padding changes nothing; window pages have numbers of their own; a tail is all that a resumed prefix needs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from wellhead.model.batch import Batch, Chunk
from wellhead.model.config_file import load_config
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.numerics import Numerics
from wellhead.model.parameters import load_parameters
from wellhead.model.standing_memory import state_bytes
from wellhead.model.state import LayerState, ModelState
from wellhead.testing.checkpoints import random_checkpoint, tiny_config_dict

CONFIG = load_config(tiny_config_dict(num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], n_routed_experts=4))
WEIGHTS = load_parameters(random_checkpoint(CONFIG, seed=2), CONFIG, with_mtp=True)
IDS = torch.randint(2, CONFIG.vocab_size, (300,), generator=torch.Generator().manual_seed(6)).tolist()


def model(name: str = "checkpoint") -> DeepseekV4:
    return DeepseekV4(WEIGHTS, CONFIG, Numerics.named(name))


def tensors(layer: LayerState) -> dict[str, torch.Tensor]:
    found = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def poison(state: ModelState) -> None:
    for layer in state.layers:
        for value in tensors(layer).values():
            value.copy_(torch.full_like(value, torch.nan) if value.is_floating_point() else 255)


def contents(state: ModelState) -> list[torch.Tensor]:
    return [value.clone().view(torch.uint8) for layer in state.layers for value in tensors(layer).values()]


def forward(net: DeepseekV4, state: ModelState, *chunks: Chunk, **options: int) -> torch.Tensor:
    batch = Batch.build(chunks, **options)
    return net.logits(net.forward(batch, state)[batch.logits_at])


@pytest.mark.parametrize("name", ["exact", "checkpoint"])
def test_padding_changes_nothing(name: str) -> None:
    """Three decoding requests, one of which completes blocks of both ratios, alone and among five rows of padding."""
    net = model(name)
    chunks = [
        Chunk([IDS[255]], 255, (4, 1), 3, window_pages=(2, 0)),
        Chunk([IDS[130]], 130, (0,), 0, window_pages=(4,)),
        Chunk([9], 0, (3,), 1, window_pages=(1,)),
    ]
    found = []
    for options in ({}, {"pad_to": 3}, {"pad_to": 8, "table_width": 5}):
        state = net.allocate(5, 4, window_pages=6)
        poison(state)
        forward(
            net, state, *(Chunk(IDS[: c.start], 0, c.pages, c.state_slot, "none", c.window_pages) for c in chunks[:2])
        )
        logits = forward(net, state, *chunks, **options)
        assert logits.isfinite().all() and logits.shape[0] == 3
        found.append((logits, contents(state)))
    for logits, bytes_ in found[1:]:
        torch.testing.assert_close(logits, found[0][0], rtol=1e-5, atol=1e-5)
        # the pages of others, whose poison would show a stray write, are equal to the last byte
        same = [torch.equal(a, b) for a, b in zip(bytes_, found[0][1], strict=True)]
        assert all(same), f"{same.count(False)} of {len(same)} pools differ"


def test_a_padded_batch_has_fixed_shapes_and_no_addresses() -> None:
    batch = Batch.build([Chunk([5], 256, (7, 3), 2, window_pages=(-1, 6))], pad_to=4, table_width=6)
    assert batch.real == 1 and batch.state_slots.tolist() == [2, -1, -1, -1]
    assert batch.page_table.shape == batch.window_table.shape == (4, 6)
    assert batch.page_table[0].tolist() == [7, 3, -1, -1, -1, -1] and (batch.page_table[1:] == -1).all()
    assert batch.window_table[0].tolist() == [-1, 6, -1, -1, -1, -1]
    assert batch.token_ids.tolist() == [5, 0, 0, 0] and batch.positions.tolist() == [256, 0, 0, 0]
    assert batch.starts.tolist() == [0, 1, 2, 3, 4] and batch.logits_at.tolist() == [0]
    assert batch.slots(batch.positions, 0).tolist() == [6 * 256, -1, -1, -1]
    assert batch.slots(batch.positions // 4, 4).tolist() == [3 * 64, -1, -1, -1]
    assert batch.slots(torch.tensor([[3, 130, 256]] * 4), 0)[0].tolist() == [-1, -1, 6 * 256]
    only_padding = Batch.build([], pad_to=2)
    assert only_padding.slots(only_padding.positions, 0).tolist() == [-1, -1] and only_padding.real == 0


def test_what_does_not_fit_is_refused() -> None:
    one = Chunk([5], 0, (0,), 0)
    with pytest.raises(ValueError, match=r"chunks of \[2\] tokens .* padded to 4"):
        Batch.build([Chunk([5, 6], 0, (0,), 0)], pad_to=4)
    with pytest.raises(ValueError, match="at most 1 chunks"):
        Batch.build([one, Chunk([5], 0, (1,), 1)], pad_to=1)
    with pytest.raises(ValueError, match="table_width is 1 but a chunk has 2 pages"):
        Batch.build([Chunk([5], 0, (0, 1), 0)], table_width=1)
    with pytest.raises(ValueError, match="1 window pages hold 256 tokens"):
        Batch.build([Chunk([5], 256, (0, 1), 0, window_pages=(1,))])
    with pytest.raises(ValueError, match=r"window pages are \(0, -1\): -1 is no page"):
        Batch.build([Chunk([5], 256, (0, 1), 0, window_pages=(0, -1))])


@pytest.mark.parametrize("name", ["exact", "checkpoint"])
def test_a_prefix_is_resumed_from_its_pages_and_its_tail(name: str) -> None:
    """In another state slot whose rings, and every page that is not given, hold NaN; the window's first page is not
    the logical one.
    """
    net = model(name)
    state = net.allocate(4, 3, window_pages=5)
    poison(state)
    expected = forward(net, state, Chunk(IDS, 0, (3, 1), 1, "all", (4, 0)))
    poison(state)
    forward(net, state, Chunk(IDS[:256], 0, (3,), 1, "none", (4,)))
    state.save_tail(1, 4)
    for layer in state.layers:
        for ring in (layer.compressor, layer.index_compressor):
            if ring is not None:
                ring.fill_(torch.nan)
    state.restore_tail(4, 2)
    found = forward(net, state, Chunk(IDS[256:], 256, (3, 0), 2, "all", (4, 2)))
    assert found.isfinite().all()
    scale = float(expected.abs().max())
    if name == "exact":
        assert float((found - expected[256:]).abs().max()) <= 1e-4 * scale
    else:
        assert torch.equal(found.argmax(-1), expected[256:].argmax(-1))


def test_a_freed_window_page_is_not_read() -> None:
    """Behind position 383 the first page's last record is out of the window."""
    net, ids = model("exact"), (IDS + IDS)[:390]
    state = net.allocate(4, 1, window_pages=4)
    expected = forward(net, state, Chunk(ids, 0, (0, 1), 0, "all"))
    forward(net, state, Chunk(ids[:383], 0, (0, 1), 0, "none"))
    for layer in state.layers:
        layer.window[0].fill_(torch.nan)
    found = forward(net, state, Chunk(ids[383:], 383, (0, 1), 0, "all", (-1, 1)))
    torch.testing.assert_close(found, expected[383:], rtol=1e-4, atol=1e-4)


def test_pools_are_counted_apart() -> None:
    numerics = Numerics.named("checkpoint")
    both, logical, window = (
        ModelState.allocate(CONFIG, numerics, pages, 0, window_pages=more).nbytes
        for pages, more in ((1, 1), (1, 0), (0, 1))
    )
    assert both == logical + window == state_bytes(CONFIG, numerics).page
    # three window pools; one C4 layer's tails: kv and score halves of 4 tokens for the records and the index keys
    assert window == 3 * 149760 + 4 * 2 * (512 + 128) * 4
    assert logical == 37440 + 64 * 132 + 1728
