"""The planner's figures against what is really allocated."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

from wellhead.dispatch import capability
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.choices import Choices, choose_ops
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import load_config
from wellhead.model.device_workspace import Workspace
from wellhead.model.dummy import dummy_weights
from wellhead.model.memory_plan import (
    Estimates,
    MemoryPlan,
    OutOfMemory,
    plan_memory,
    window_pool,
)
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.standing_memory import state_bytes, weight_bytes
from wellhead.model.state import ModelState, pages_for
from wellhead.model.stream import load_device_weights
from wellhead.model.working_memory import Steps, sampler_bytes, workspace_bytes

pytest.importorskip("triton")

CHECKPOINT = Numerics.named("checkpoint")
NOTHING = Estimates(bytes_a_graph_node=0, context=0, nccl=0)


@pytest.fixture
def tiny() -> ModelConfig:
    return load_config(resolve_model())


@pytest.mark.parametrize("with_mtp", [False, True])
@pytest.mark.parametrize("split", [Split(), Split(1, 2), Split(0, 2, "expert")])
def test_weights_are_those_of_the_loaded_tree(tiny: ModelConfig, split: Split, with_mtp: bool) -> None:
    planned = weight_bytes(tiny, split, with_mtp=with_mtp)
    loaded, _ = load_device_weights(open_checkpoint(resolve_model()), split, "cpu", with_mtp=with_mtp)
    drawn = dummy_weights(tiny, split, "cpu", with_mtp=with_mtp)
    assert planned.total == loaded.nbytes == drawn.nbytes
    experts = [layer.moe.experts for layer in (*loaded.layers, *(module.layer for module in loaded.mtp))]
    assert planned.experts == sum(e.w13.nbytes + e.w2.nbytes for e in experts)
    assert planned.vocabulary == loaded.embedding.nbytes + loaded.head.vocabulary.nbytes


@pytest.mark.parametrize("numerics", [CHECKPOINT, Numerics.named("checkpoint", "fp4"), Numerics.named("exact")])
@pytest.mark.parametrize("with_mtp", [False, True])
def test_caches_are_those_of_the_state(tiny: ModelConfig, numerics: Numerics, with_mtp: bool) -> None:
    planned = state_bytes(tiny, numerics, with_mtp=with_mtp)
    state = ModelState.allocate(tiny, numerics, 7, 3, with_mtp=with_mtp)
    assert state.nbytes == 7 * planned.page + 3 * planned.slot


def test_pages_of_the_large_model() -> None:
    """Bytes by hand: 43 window pages of 149,760 with 21 tails; 21 C4 pages of 64 records and 20 of 2; 21 of 64 keys."""
    planned = state_bytes(load_config(published_config("v4-flash")), CHECKPOINT)
    assert planned.window_page == 43 * 149_760 + 21 * 4 * 2 * (512 + 128) * 4
    assert planned.compressed_page == 21 * 37_440 + 20 * 1_728
    assert planned.index_page == 21 * 64 * 132
    assert planned.slot == 4 * (21 * 16 * (2 * 1024 + 2 * 256) + 20 * 132 * 2 * 512)


def choices(config: ModelConfig, split: Split = WHOLE, arch: str = "sm90") -> Choices:
    return choose_ops(config, split, capability.features_of(capability.simulated(arch), "3.6.0"))


def test_the_plan_uses_what_there_is(tiny: ModelConfig) -> None:
    steps = Steps(256, (1, 2, 4), 8192)
    plan = plan_memory(tiny, CHECKPOINT, WHOLE, 200_000_000, steps, choices(tiny), slots=4, estimates=NOTHING)
    assert plan.pages > 10 and plan.tokens == 256 * plan.pages
    assert plan.used <= plan.available < plan.used + plan.state.page
    assert sum(size for _, size in plan.rows()) == plan.available
    weights, _ = load_device_weights(open_checkpoint(resolve_model()), WHOLE, "cpu")
    state = ModelState.allocate(tiny, CHECKPOINT, plan.pages, 4, window_pages=plan.window_pages)
    assert plan.weights.total == weights.nbytes and plan.caches == state.nbytes


def test_the_window_pool_is_small_and_large_enough() -> None:
    """A window page is seven eighths of a page's bytes: one a logical page would leave a fifth of the tokens."""
    config, split = load_config(published_config("v4-flash")), Split(0, 2)
    steps = Steps(4096, (1, 64), 131072)
    plan = plan_memory(config, CHECKPOINT, split, 140 * 10**9, steps, choices(config, split), slots=64)
    left = plan.available - plan.used + plan.pages * (plan.state.page - plan.state.window_page)
    left += plan.window_pages * plan.state.window_page
    assert plan.pages > 3.5 * (left // plan.state.page)
    assert plan.window_pages == 2 * 64 + 17 + plan.pages // 8
    assert window_pool(5, 64, 512) == 5 and window_pool(0, 1, 512) == 0


def test_what_does_not_fit_is_said_in_bytes() -> None:
    config = load_config(published_config("v4-flash"))
    with pytest.raises(OutOfMemory, match=r"80\.00 GB a rank are .* GB too few .*experts 138\.51 GB.*more ranks"):
        plan_memory(config, CHECKPOINT, WHOLE, 80 * 10**9, Steps(256, (1,), 4096), choices(config), slots=1).checked()


def test_a_model_of_window_layers_alone_is_planned() -> None:
    """The first two layers of V4-Flash compress nothing: a logical page costs its share of a window page alone."""
    config = load_config(first_layers(published_config("v4-flash"), 2))
    plan = plan_memory(config, CHECKPOINT, WHOLE, 20 * 10**9, Steps(256, (1,), 4096), choices(config), slots=1)
    assert plan.state.page == plan.state.window_page and plan.window_pages == 4 + plan.pages // 8
    assert plan.used <= plan.available < plan.used + plan.state.page


def owned(tree: object) -> int:
    """Bytes of the tensors of a real object, counted by the garbage collector's eyes and not by the planner's."""
    seen: dict[int, int] = {}
    todo, known = [tree], set()
    while todo:
        one = todo.pop()
        if id(one) in known or isinstance(one, (type, str, int, float)):
            continue
        known.add(id(one))
        if isinstance(one, torch.Tensor):
            seen[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif type(one).__module__.startswith("wellhead") or isinstance(one, (dict, list, tuple)):
            todo += gc.get_referents(one)
    return sum(seen.values())


@pytest.mark.parametrize(("tokens", "chunked"), [(1, False), (32, False), (300, True)])
def test_a_workspace_is_counted_as_it_is_made(tiny: ModelConfig, tokens: int, chunked: bool) -> None:
    chosen = choices(tiny)
    planned = workspace_bytes(tiny, CHECKPOINT, WHOLE, chosen, tokens, 4096, chunked=chunked)
    made = Workspace(tiny, CHECKPOINT, WHOLE, chosen, tokens, 16, chunked=chunked, device="cpu")
    assert planned == owned(made)


def test_every_decode_size_has_buffers_and_drafts_have_places() -> None:
    """Logits and workspace of size * (1 + drafts) tokens: of the graphs, not of the prompts' workspace."""
    config = load_config(published_config("v4-flash"))
    given = (config, CHECKPOINT, WHOLE, 200 * 10**9)
    sizes = (1, 2, 4, 8, 16, 32)
    plans = [
        plan_memory(*given, Steps(512, sizes, 131072, drafts), choices(config), slots=32, estimates=NOTHING)
        for drafts in (0, 1, 3)
    ]
    graphs = [plan.graphs for plan in plans]
    assert graphs[0] > 4 * 129280 * sum(sizes) + 4 * 129280 * 32  # logits of every size, and the largest's on the way
    assert graphs[0] < graphs[1] < graphs[2]
    assert graphs[2] > 2 * 4 * 129280 * 32 * 4
    assert plans[2].weights.total > plans[0].weights.total and plans[2].state.page > plans[0].state.page
    draws = [sampler_bytes(config, choices(config), 32 * places) for places in (1, 2, 4)]
    own = [plan.workspace - drawing for plan, drawing in zip(plans, draws, strict=True)]
    assert draws[0] < draws[1] < draws[2] < 4_000_000
    assert own[1] - own[0] == own[2] - own[0] == 3 * 512 * 5 * 4096  # of the drafting layer
    none = plan_memory(*given, Steps(0, sizes, 131072), choices(config), slots=32, estimates=NOTHING)
    assert none.graphs == graphs[0] and none.workspace < 1_000_000  # what draws tokens alone


LADDER = (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("layers", "world", "sizes", "context", "measured"),
    [(12, 1, LADDER, 4096, 48.60), (12, 1, (1,), 131072, 46.93), (43, 2, LADDER, 4096, 89.92)],
)
def test_the_plan_is_what_a_card_held(
    layers: int, world: int, sizes: tuple[int, ...], context: int, measured: float
) -> None:
    """`bench step` on an H100 80GB (commit ce9c158) and two H200 (23034d1), GB in use: step.jsonl. Every batch size had
    buffers of its own then, 0.1 to 0.2 GB of the ladder's.
    """
    config, split = load_config(first_layers(published_config("v4-flash"), layers)), Split(0, world)
    chosen = choices(config, split)
    plan = plan_memory(config, CHECKPOINT, split, 140 * 10**9, Steps(0, sizes, context), chosen, slots=max(sizes))
    caches = max(sizes) * (pages_for(context) * plan.state.page + plan.state.slot)
    planned = plan.weights.total + caches + plan.workspace + plan.graphs + plan.reserved
    assert planned == pytest.approx(measured * 1e9, rel=0.002 if len(sizes) == 1 else 0.003)


def tiny_choices(split: Split) -> Choices:
    """Half an expert of `tiny` is narrower than any kernel takes."""
    features = capability.features_of(capability.simulated("sm90"), "3.6.0")
    return choose_ops(open_checkpoint(resolve_model()).config, split, features, {"moe": "reference"})


def test_estimates_are_counted(tiny: ModelConfig) -> None:
    guess = dataclasses.replace(NOTHING, context=10_000_000, nccl=20_000_000, bytes_a_graph_node=1, nodes_a_layer=10)
    steps = Steps(16, (1, 2, 4), 1024)

    def plan(split: Split = WHOLE, estimates: Estimates = guess, **more: object) -> MemoryPlan:
        own = dataclasses.replace(steps, **more)  # type: ignore[arg-type]
        return plan_memory(tiny, CHECKPOINT, split, 10**9, own, tiny_choices(split), slots=1, estimates=estimates)

    assert (plan().reserved, plan(Split(0, 2)).reserved) == (10_000_000, 30_000_000)
    assert plan().graphs - plan(estimates=NOTHING).graphs == (3 + 1) * tiny.num_hidden_layers * 10
    assert plan(captured=False).graphs == plan(estimates=NOTHING).graphs
