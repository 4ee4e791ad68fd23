"""How many first layers of a published model fit a card that is to measure their decodes."""

from __future__ import annotations

from collections.abc import Sequence

from wellhead.dispatch.features import Features
from wellhead.model.choices import Choices, choose_ops
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import load_config
from wellhead.model.device_graphs import LADDER
from wellhead.model.memory_plan import largest, plan_memory
from wellhead.model.numerics import Numerics
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.state import pages_for
from wellhead.model.working_memory import Steps

FILLED = 0.97  # of a card's memory, by the planner; drawing weights takes a little more for a moment


def ladder(batches: Sequence[int]) -> list[int]:
    """The sizes that are measured, and those that an engine would capture below the largest."""
    return sorted({*batches, *(size for size in LADDER if size < max(batches))})


def needed_bytes(
    config: ModelConfig, split: Split, choices: Choices, sizes: Sequence[int], context: int, limit: int, drafts: int
) -> int:
    """What the planner says that decodes of these sizes take of one rank's memory, full caches included."""
    slots, steps = max(sizes), Steps(0, tuple(sizes), limit, drafts)
    plan = plan_memory(config, Numerics.named("checkpoint"), split, 0, steps, choices, slots=slots)
    caches = slots * (pages_for(context) * plan.state.page + plan.state.slot)
    return plan.weights.total + caches + plan.workspace + plan.graphs + plan.reserved


def fitting_layers(
    name: str, split: Split, available: int, batches: Sequence[int], context: int, limit: int, drafts: int,
    features: Features,
) -> int:
    """The most first layers of a published model that FILLED of `available` bytes hold with these decodes; ValueError
    where not one does.
    """
    raw = published_config(name)

    def fits(layers: int) -> bool:
        config = load_config(first_layers(raw, layers))
        choices = choose_ops(config, split, features)
        return needed_bytes(config, split, choices, ladder(batches), context, limit, drafts) <= FILLED * available

    layers = largest(int(raw["num_hidden_layers"]), fits)
    if not layers:
        raise ValueError(f"not one layer of {name} fits {available / 1e9:.1f} GB over {split.world} ranks; use more")
    return layers
