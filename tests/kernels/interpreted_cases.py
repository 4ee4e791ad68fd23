"""What the benchmark does before it prints a speed, on small sizes: kernels against reference through the SPEC."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wellhead.dispatch.spec import REFERENCE, OpSpec
from wellhead.ops import registry
from wellhead.ops.kv_store.spec import make as make_kv_store
from wellhead.ops.linear.spec import make as make_linear
from wellhead.ops.moe.spec import make as make_moe
from wellhead.ops.norm_quant.spec import make as make_norm_quant
from wellhead.ops.rope.spec import make as make_rope
from wellhead.ops.sparse_mla.spec import make as make_sparse_mla

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def drawn(op: str) -> dict[str, Any]:
    generator = torch.Generator(DEVICE).manual_seed(1)
    match op:
        case "linear":
            return make_linear(3, 200, 384, generator, DEVICE)
        case "norm_quant":
            return make_norm_quant(3, 384, generator, DEVICE)
        case "rope":
            return make_rope(3, 5, 128, generator, DEVICE)
        case "kv_store":
            return make_kv_store(3, 5, 64, generator, DEVICE)
        case "moe":
            return make_moe(3, 256, 256, 6, 2, generator, DEVICE)
        case _:
            return make_sparse_mla(2, 16, 64, 64, generator, DEVICE)


@pytest.mark.parametrize("op", ["norm_quant", "linear", "rope", "kv_store", "moe", "sparse_mla"])
def test_prepared_kernels_agree_with_the_prepared_reference(op: str) -> None:
    spec: OpSpec = registry.spec(op)
    inputs = drawn(op)
    kernels, reference = spec.impl("triton").prepare, spec.impl(REFERENCE).prepare
    assert kernels is not None and reference is not None
    found, expected = kernels(inputs)().cpu().float(), reference(inputs)().cpu().float()
    assert found.shape == expected.shape and bool(expected.abs().max() > 0)
    assert bool(((found - expected).abs() <= spec.error.absolute + spec.error.relative * expected.abs()).all())
