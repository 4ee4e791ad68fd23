"""Which experts run on which card, and why not the others."""

from __future__ import annotations

import dataclasses

import pytest

from wellhead.dispatch import capability
from wellhead.dispatch.choose import NoImplementation, choose
from wellhead.ops.moe.spec import SPEC

MANY = {"tokens": 4096, "d": 4096, "m": 2048, "experts": 96, "top_k": 6}


@pytest.mark.parametrize(
    ("arch", "triton", "change", "taken", "reason"),
    [
        ("sm120", "3.7.1", {}, "triton-w4a8", "block_scaled_mma compiled"),
        ("sm120", "3.7.1", {"tokens": 64}, "triton", "tokens=64: more than 64"),
        ("sm120", "3.7.1", {"weight_bits": 8}, "triton", "weight_bits=8: MXFP4 experts have 4"),
        ("sm121", "3.7.1", {}, "triton", "block_scaled_mma absent"),
        ("sm121", "3.9.0", {}, "triton-w4a8", "block_scaled_mma compiled"),
        ("sm90", "3.7.1", {}, "triton", "block_scaled_mma absent"),
    ],
)
def test_the_first_that_fits(arch: str, triton: str, change: dict[str, int], taken: str, reason: str) -> None:
    features = capability.features_of(capability.simulated(arch), triton)
    choice = choose(SPEC, features, {**MANY, **change})
    assert choice.impl == taken
    assert reason in choice.reason + "; ".join(f"{name}: {why}" for name, why in choice.rejected)


def test_bf16_activations_only_when_asked_for() -> None:
    features = capability.features_of(capability.simulated("sm90"), "3.7.1")
    assert choose(SPEC, features, MANY, "triton-w4a16").impl == "triton-w4a16"
    alone = dataclasses.replace(SPEC, impls=(SPEC.impl("triton-w4a16"), SPEC.impl("reference")))
    with pytest.raises(NoImplementation, match="triton-w4a16: other numerics than the checkpoint's"):
        choose(alone, features, MANY)


def test_every_width_that_ranks_have_keeps_the_checkpoints_numerics() -> None:
    """V4-Pro's 3,072 channels over eight ranks are 384."""
    features = capability.features_of(capability.simulated("sm90"), "3.7.1")
    for tokens in (1, 64, 4096):
        assert choose(SPEC, features, {**MANY, "tokens": tokens, "d": 7168, "m": 384}).impl == "triton"
