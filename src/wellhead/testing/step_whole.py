"""A whole model's step from the step of its first layers: every kind of layer is timed inside one captured step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from wellhead.model.config import ModelConfig
from wellhead.testing.step_profile import Launch

Kind = tuple[int, bool]  # of a layer: its ratio, and whether its experts follow from the token's id
SITE = "project_kernel"  # of the hyper-connections: the first launch of each half of a layer, and of the head


def kinds(config: ModelConfig) -> list[Kind]:
    """Of each main layer."""
    ratios = config.compress_ratios[: config.num_hidden_layers]
    return [(ratio, layer < config.num_hash_layers) for layer, ratio in enumerate(ratios)]


def halves(run: Sequence[Launch], layers: int) -> tuple[float, list[float], list[float]]:
    """Microseconds outside the layers, of each layer's attention and of each layer's experts, hyper-connections with
    either. They add up to the step. ValueError for launches of another number of layers.
    """
    begins = [launch.begin for launch in run if launch.name == SITE]
    if len(begins) != 2 * layers + 1:
        raise ValueError(f"{len(begins)} launches of {SITE}, expected two a layer of {layers} and the head's")
    took = [after - before for before, after in pairwise(begins)]
    whole = max(launch.end for launch in run) - run[0].begin
    return whole - sum(took), took[::2], took[1::2]


def whole_step(runs: Sequence[Sequence[Launch]], ms: float, measured: Sequence[Kind], wanted: Sequence[Kind]) -> float:
    """Milliseconds of a step of the layers `wanted`, from profiled runs of one of the layers `measured`, which took
    `ms` before it was profiled: attention is the mean over layers of that ratio, experts over layers of that routing.
    """
    scaled = []
    for run in runs:
        outside, attention, experts = halves(run, len(measured))
        of_ratio, of_routing = defaultdict(list), defaultdict(list)
        for (ratio, hashed), attended, routed in zip(measured, attention, experts, strict=True):
            of_ratio[ratio].append(attended)
            of_routing[hashed].append(routed)
        total = outside + sum(fmean(of_ratio[ratio]) + fmean(of_routing[hashed]) for ratio, hashed in wanted)
        scaled.append(ms * total / (outside + sum(attention) + sum(experts)))
    return fmean(scaled)
