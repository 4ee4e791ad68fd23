"""V4-Flash and V4-Pro at every number of ranks, from the configuration alone: what runs, how it is laid out, what fits.

Steps run on "meta": every plan is made, every launch is checked by its own shape checks, nothing is computed.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from wellhead.dispatch import capability
from wellhead.dispatch.features import Features
from wellhead.dispatch.spec import REFERENCE
from wellhead.model.choices import choose_ops
from wellhead.model.config_file import load_config
from wellhead.model.dummy import dummy_weights
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.standing_memory import weight_bytes
from wellhead.testing.compile_column import objections
from wellhead.testing.model_launches import LAYERS, compiled, launches
from wellhead.testing.step_fit import fitting_layers

H200 = 141 * 10**9
MODELS = ("v4-flash", "v4-pro")
WORLDS = (1, 2, 4, 8)
EVERY = [
    (name, Split(world - 1, world, experts))  # type: ignore[arg-type]
    for name in MODELS for world in WORLDS for experts in ("width", "expert")
]  # fmt: skip


def on(arch: str) -> Features:
    return capability.features_of(capability.simulated(arch), "3.6.0")


def named(value: object) -> str | None:
    return f"tp{value.world}-{value.experts}" if isinstance(value, Split) else None


@pytest.mark.parametrize("arch", ["sm90", "sm120"])
@pytest.mark.parametrize(("name", "split"), EVERY, ids=named)
def test_every_op_has_a_kernel_for_a_ranks_sizes(name: str, split: Split, arch: str) -> None:
    config = load_config(published_config(name))
    split.check(config)
    found = choose_ops(config, split, on(arch)).all
    assert [choice.op for choice in found if choice.impl == REFERENCE] == []


@pytest.mark.parametrize(("name", "split"), EVERY, ids=named)
def test_steps_launch_what_a_ranks_sizes_ask_for(name: str, split: Split) -> None:
    config = load_config(first_layers(published_config(name), LAYERS))
    assert set(config.compress_ratios) >= {4, 128}
    found = launches(config, split, "sm90", 4096, decodes=(1, 8, 64), prefills=(512,), verifies=(1, 8))
    kernels = {build.kernel.__name__ for build in found}
    assert {"attend_kernel", "gate_up_kernel", "norm_quant_kernel", "project_kernel", "best_of_part"} <= kernels
    widths = {b.constants["D"] for b in found if b.kernel.__name__ == "norm_quant_kernel"}
    assert {config.q_lora_rank, config.o_groups * config.o_lora_rank // split.world} <= widths


# GB of weights a rank; what is divided shrinks with the ranks, latents, compressors and hyper-connections do not.
WEIGHTS = {
    ("v4-flash", 1): 156.0, ("v4-flash", 2): 78.7, ("v4-flash", 4): 40.0, ("v4-flash", 8): 20.6,
    ("v4-pro", 2): 427.1, ("v4-pro", 4): 215.3, ("v4-pro", 8): 109.4,
}  # fmt: skip


@pytest.mark.parametrize(("name", "world"), WEIGHTS)
def test_weights_of_a_rank(name: str, world: int) -> None:
    planned = weight_bytes(load_config(published_config(name)), Split(0, world)).total / 1e9
    assert planned == pytest.approx(WEIGHTS[name, world], abs=0.06)


@pytest.mark.parametrize(
    ("name", "world", "whole"),
    [("v4-flash", 1, False), ("v4-flash", 2, True), ("v4-flash", 8, True), ("v4-pro", 4, False), ("v4-pro", 8, True)],
)
def test_layers_that_fit_an_h200(name: str, world: int, whole: bool) -> None:
    layers = published_config(name)["num_hidden_layers"]
    found = fitting_layers(name, Split(0, world), H200, (1, 8, 64), 4096, 4096, 0, on("sm90"))
    assert (found == layers) is whole and found > layers // 3
    if not whole:
        assert weight_bytes(load_config(first_layers(published_config(name), found)), Split(0, world)).total < H200


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("world", [2, 4, 8])
def test_dummy_weights_of_a_rank(name: str, world: int) -> None:
    """As wide as the model, with few experts and words: drawn for the last rank, in the layout that steps read."""
    raw = first_layers(published_config(name), 1) | {"n_routed_experts": 8, "vocab_size": 1024}
    config = load_config(raw | {"num_nextn_predict_layers": 0, "compress_ratios": raw["compress_ratios"][:1]})
    weights = dummy_weights(config, Split(world - 1, world), "cpu")
    width = config.moe_intermediate_size // world
    assert weights.layers[0].moe.experts.w13.nbytes == 8 * 2 * width * config.hidden_size // 2
    assert bool(weights.head.vocabulary.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("world", [8])
def test_v4_pros_own_variants_compile_without_spills(world: int) -> None:
    rows = compiled("v4-pro", world, ("sm90", "sm120"))
    assert len(rows) > 80 and not objections(rows), "\n".join(objections(rows))
