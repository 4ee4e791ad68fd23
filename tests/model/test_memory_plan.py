"""The planner's figures against what is really allocated."""

from __future__ import annotations

import dataclasses

import pytest

from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import load_config
from wellhead.model.dummy import dummy_weights
from wellhead.model.memory_plan import (
    Estimates,
    OutOfMemory,
    plan_memory,
    state_bytes,
    weight_bytes,
    workspace_bytes,
)
from wellhead.model.numerics import Numerics
from wellhead.model.published import published_config
from wellhead.model.split import Split
from wellhead.model.state import ModelState
from wellhead.model.stream import load_device_weights

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


def test_the_plan_uses_what_there_is(tiny: ModelConfig) -> None:
    plan = plan_memory(tiny, CHECKPOINT, Split(), 200_000_000, slots=4, step_tokens=256, estimates=NOTHING)
    assert plan.pages > 10 and plan.tokens == 256 * plan.pages
    assert plan.used <= plan.available < plan.used + plan.state.page
    assert sum(size for _, size in plan.rows()) == plan.available
    weights, _ = load_device_weights(open_checkpoint(resolve_model()), Split(), "cpu")
    state = ModelState.allocate(tiny, CHECKPOINT, plan.pages, 4)
    assert plan.weights.total == weights.nbytes and plan.caches == state.nbytes


def test_a_window_pool_of_its_own_leaves_more_tokens() -> None:
    config = load_config(published_config("v4-flash"))
    given = {"slots": 64, "step_tokens": 4096, "graph_sizes": 10}
    plain = plan_memory(config, CHECKPOINT, Split(0, 2), 140 * 10**9, **given)
    own = plan_memory(config, CHECKPOINT, Split(0, 2), 140 * 10**9, window_pages=192, **given)
    assert own.tokens > 5 * plain.tokens
    assert own.used <= own.available and own.caches - plain.caches < own.state.page + plain.state.page


def test_what_does_not_fit_is_said_in_bytes() -> None:
    config = load_config(published_config("v4-flash"))
    with pytest.raises(OutOfMemory, match=r"80\.00 GB a rank are .* GB too few .*experts 138\.51 GB.*more ranks"):
        plan_memory(config, CHECKPOINT, Split(), 80 * 10**9, slots=1, step_tokens=256)


def test_workspace_grows_with_the_step_and_shrinks_with_ranks() -> None:
    config = load_config(published_config("v4-flash"))
    sizes = {"logits": 8, "index_columns": 4096, "index_rows": 8}
    small, large = (workspace_bytes(config, Split(), tokens=tokens, **sizes) for tokens in (64, 4096))
    assert large > 40 * small / 2
    assert workspace_bytes(config, Split(0, 8), tokens=4096, **sizes) < large


def test_estimates_are_counted(tiny: ModelConfig) -> None:
    guess = dataclasses.replace(NOTHING, context=10_000_000, nccl=20_000_000, bytes_a_graph_node=1, nodes_a_layer=10)
    given = {"slots": 1, "step_tokens": 16, "graph_sizes": 3, "estimates": guess}
    one = plan_memory(tiny, CHECKPOINT, Split(), 10**9, **given)
    two = plan_memory(tiny, CHECKPOINT, Split(0, 2), 10**9, **given)
    assert (one.reserved, two.reserved) == (10_000_000, 30_000_000)
    assert one.graphs == 3 * tiny.num_hidden_layers * 10
