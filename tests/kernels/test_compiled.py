"""Each build of these ops cross-compiled for sm_120: shared memory, spills and the tensor-core instruction."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from wellhead.dispatch.crosscompile import compile_for
from wellhead.dispatch.spec import Impl, KernelBuild
from wellhead.ops import registry

OPS = ("topk", "routing", "sampling")
BUILDS = [(op, impl, build) for op in OPS for impl in registry.spec(op).impls for build in impl.builds()]


def test_every_kernel_is_among_the_builds() -> None:
    for op in OPS:
        built = {build.kernel.fn.__name__ for name, _, build in BUILDS if name == op}
        assert built == KERNELS[op]
        names = [build.name for name, _, build in BUILDS if name == op]
        assert len(set(names)) == len(names)


KERNELS = {
    "topk": {"count_digits", "write_chosen"},
    "routing": {"route", "route_by_token", "list_tokens"},
    "sampling": {"best_of_part", "sum_digits", "draw_part", "pick"},
}


@pytest.mark.parametrize(("op", "impl", "build"), BUILDS, ids=[f"{op}-{build.name}" for op, _, build in BUILDS])
def test_fits_sm120(op: str, impl: Impl, build: KernelBuild) -> None:
    found = compile_for(build, "sm120")
    assert found.shared_bytes <= impl.shared_bytes <= 101376
    assert found.spill_bytes == found.stack_bytes == 0
    expected = build.mma.get("sm120")
    assert [line for line in found.mma if expected and expected in line] or not expected
    assert bool(found.mma) == bool(expected)
