"""Steps over prompts: filled up to one of a few sizes, for short requests or long ones; the drafting layer behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from wellhead.dispatch.spec import REFERENCE
from wellhead.model import device_prompts
from wellhead.model.batch import Chunk
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_prompts import PromptSteps
from wellhead.model.device_workspace import Workspace
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.reach import prompt_reaches, prompt_sizes
from wellhead.model.state import ModelState
from wellhead.model.stream import load_device_weights

pytest.importorskip("triton")
VOCABULARY, CONTEXT = 3072, 65536


@pytest.fixture(scope="module")
def model() -> DeviceModel:
    """Every op in torch, where a row's bits do not depend on the rows beside it."""
    checkpoint = open_checkpoint(resolve_model())
    weights, _ = load_device_weights(checkpoint, WHOLE, "cpu", with_mtp=True)
    return DeviceModel(weights, checkpoint.config, Numerics.named("checkpoint"), impl=REFERENCE)


@pytest.fixture
def states(model: DeviceModel) -> tuple[ModelState, ModelState]:
    return model.allocate(6, 3), model.allocate(6, 3)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def ran(steps: PromptSteps, chunks: Sequence[Chunk]) -> torch.Tensor:
    steps.run(chunks)
    return steps.streams[: sum(len(chunk.token_ids) for chunk in chunks)].clone()


def test_sizes_end_with_the_chunk() -> None:
    assert prompt_sizes(2048) == [16, 64, 128, 256, 512, 1024, 2048] and prompt_sizes(600)[-3:] == [256, 512, 600]
    assert prompt_reaches(9000) == [9000] and prompt_reaches(1 << 20) == [32768, 262144, 1 << 20]
    assert prompt_sizes(100) == [16, 64, 100] and prompt_sizes(8) == [8] and prompt_sizes(16) == [16]


def test_what_fills_a_step_up_changes_nothing(model: DeviceModel, states: tuple[ModelState, ModelState]) -> None:
    """Chunks of several requests, one behind the other, against steps that are exactly as long."""
    filled = PromptSteps(model, states[0], 80, CONTEXT, 3, captured=False)
    exact = PromptSteps(model, states[1], 80, CONTEXT, 3, sizes=(4, 12, 47, 70), captured=False)
    assert filled.sizes == [16, 64, 80]
    for lengths, starts in (((40, 7), (0, 0)), ((3, 9), (40, 7)), ((70,), (43,)), ((1, 2, 1), (113, 16, 0))):
        chunks = [
            Chunk(tokens(length, 7 * slot + start), start, [slot, 5 - slot], slot)
            for slot, (length, start) in enumerate(zip(lengths, starts, strict=True))
        ]
        assert torch.equal(ran(filled, chunks), ran(exact, chunks)), lengths
    for one, other in zip(states[0].layers, states[1].layers, strict=True):
        for name in ("window", "compressed", "index_keys", "compressor", "index_compressor"):
            left, right = getattr(one, name), getattr(other, name)
            assert left is None or torch.equal(left.view(torch.uint8), right.view(torch.uint8)), name


def test_the_drafting_layer_follows_over_what_is_loaded(
    model: DeviceModel, states: tuple[ModelState, ModelState]
) -> None:
    mtp = DeviceMtp(model)
    filled = PromptSteps(model, states[0], 80, CONTEXT, 3, captured=False, mtp=mtp)
    exact = PromptSteps(model, states[1], 80, CONTEXT, 3, sizes=(7, 33), captured=False, mtp=mtp)
    for count, start in ((33, 0), (7, 33)):
        chunks = [Chunk(tokens(count, start), start, [4], 1)]
        following = torch.tensor(tokens(count, count))
        done = exact.run(chunks)
        whole = mtp.forward(exact.streams[:count], following, done.inputs, states[1], done.workspace).clone()
        assert torch.equal(filled.run(chunks).step.follow(following), whole)
    for one, other in zip(states[0].mtp, states[1].mtp, strict=True):
        assert torch.equal(one.window.view(torch.uint8), other.window.view(torch.uint8))


def test_inputs_are_those_of_the_tokens_alone(model: DeviceModel, states: tuple[ModelState, ModelState]) -> None:
    steps = PromptSteps(model, states[0], 64, CONTEXT, 3, captured=False)
    steps.run([Chunk(tokens(60, 1), 0, [1], 0)])
    done = steps.run([Chunk(tokens(5, 2), 60, [1], 0), Chunk(tokens(4, 3), 0, [2], 2)])
    inputs = done.inputs
    assert inputs.positions.tolist() == [60, 61, 62, 63, 64, 0, 1, 2, 3]
    assert inputs.rows.tolist() == [0] * 5 + [1] * 4 and inputs.state_slots.tolist() == [0] * 5 + [2] * 4
    assert inputs.firsts is not None and inputs.firsts.tolist() == [0] * 5 + [5] * 4
    assert inputs.ends is not None and inputs.ends[4].tolist() == [3, 8, -1, -1, -1, -1, -1]
    assert inputs.ends[128].tolist() == [-1] * 3


def test_short_requests_take_plans_for_short_ones(model: DeviceModel, states: tuple[ModelState, ModelState]) -> None:
    steps = PromptSteps(model, states[0], 20, CONTEXT, 3, captured=False)
    assert list(steps.by_reach) == [128, 256] and set(steps.steps) == {(16, 128), (16, 256), (20, 128), (20, 256)}
    run = [steps.run([Chunk([5] * count, 0, range(pages), 0)]) for count, pages in ((9, 4), (9, 128), (20, 129))]
    assert all(done.workspace is steps.by_reach[pages] for done, pages in zip(run, (128, 128, 256), strict=True))
    with pytest.raises(ValueError, match="prompts of 21 tokens, one with 1 pages; a step takes 20 of requests with"):
        steps.run([Chunk([5] * 21, 0, [0], 0)])
    with pytest.raises(ValueError, match="one with 257 pages"):
        steps.run([Chunk([5] * 2, 0, range(257), 0)])


def test_a_graph_finds_its_buffers(
    model: DeviceModel, states: tuple[ModelState, ModelState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured step no longer holds what it called, but what its plans own must live as long as it does."""
    made: list[weakref.ref[Any]] = []
    planned = Workspace._plan_reach

    def plan(self: Workspace, pages: int) -> None:
        planned(self, pages)
        made.append(weakref.ref(self.topk))

    monkeypatch.setattr(Workspace, "_plan_reach", plan)
    monkeypatch.setattr(device_prompts, "capture", lambda parts, pool: [lambda: None for _ in parts])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    steps = PromptSteps(model, states[0], 20, CONTEXT, 3)
    gc.collect()
    assert all(step.captured for step in steps.steps.values()) and len(made) == 4
    assert all(plan() is not None for plan in made)


def test_steps_share_the_buffers_between_launches(model: DeviceModel, states: tuple[ModelState, ModelState]) -> None:
    steps = PromptSteps(model, states[0], 20, CONTEXT, 3, captured=False)
    short, long = steps.by_reach.values()
    for name, buffer in vars(long).items():
        if isinstance(buffer, torch.Tensor):
            assert getattr(short, name).data_ptr() == buffer.data_ptr(), name
    assert short.attend[4] is long.attend[4] and short.attend[128] is not long.attend[128]
