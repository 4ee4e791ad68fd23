"""What the benchmark does before it prints a speed, on small sizes: kernels against reference through the SPEC."""

from __future__ import annotations

import pytest
import torch

from kernels.small import SMALL
from wellhead.dispatch.spec import REFERENCE
from wellhead.ops import registry
from wellhead.testing.agreement import compare, results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("op", SMALL)
def test_prepared_kernels_agree_with_the_prepared_reference(op: str) -> None:
    spec = registry.spec(op)
    inputs = SMALL[op](torch.Generator(DEVICE).manual_seed(1), DEVICE)
    kernels, reference = spec.impl("triton").prepare, spec.impl(REFERENCE).prepare
    assert kernels is not None and reference is not None
    found, expected = results(kernels(inputs)), results(reference(inputs))
    assert all(bool(value.float().abs().max() > 0) for value in expected)
    assert compare(found, expected, spec.error)


def test_every_op_has_a_small_case() -> None:
    assert set(SMALL) == {spec.name for spec in registry.specs()}
