"""Buffers that plans of steps which run one at a time have in common."""

from __future__ import annotations

import torch

from wellhead.ops import scratch
from wellhead.ops.scratch import Scratch


def made(*sizes: int) -> list[torch.Tensor]:
    return [scratch.empty(size, 2, dtype=torch.float32, device="cpu") for size in sizes]


def places(tensors: list[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def test_what_is_planned_together_is_apart_and_what_is_not_is_not() -> None:
    blocks = Scratch()
    with blocks.lend():
        first = made(100, 30, 60)
    with blocks.lend():
        second = made(25, 60, 90)
    assert len(set(places(first))) == 3 and len(blocks.blocks) == 3
    assert places(second) == [places(first)[at] for at in (1, 2, 0)], "the smallest that is large enough"
    assert [tensor.shape for tensor in second] == [(25, 2), (60, 2), (90, 2)]
    with blocks.lend():
        third = made(90, 90, 90)
    assert len(set(places(third))) == 3 and len(blocks.blocks) == 5


def test_kinds_of_elements_lie_in_the_same_block() -> None:
    blocks = Scratch()
    for dtype in (torch.int64, torch.float8_e4m3fn, torch.bfloat16, torch.uint8):
        with blocks.lend():
            one = scratch.empty(3, 16, dtype=dtype, device="cpu")
        assert one.dtype == dtype and one.shape == (3, 16) and one.is_contiguous() and not one.data_ptr() % 16
    assert len(blocks.blocks) == 1


def test_nothing_is_lent_outside_or_for_nothing() -> None:
    blocks, inner = Scratch(), Scratch()
    assert made(8)[0].data_ptr() not in places(blocks.blocks)
    with blocks.lend():
        scratch.empty(0, 7, dtype=torch.int32, device="cpu")
        with inner.lend():
            made(4)
        made(5)
    assert (len(blocks.blocks), len(inner.blocks)) == (1, 1)
    assert len(made(5)) == 1 and len(blocks.blocks) == 1


def test_sizes_without_memory_are_counted() -> None:
    blocks = Scratch()
    for count in (1 << 30, 1 << 29):
        with blocks.lend():
            tensor = scratch.empty(count, dtype=torch.bfloat16, device="meta")
        assert tensor.untyped_storage().nbytes() == 2 << 30
