"""Integers that are 1 at a launch are constants to the compiler: kernels must compile with them, which no interpreter
and no build of a shipped size shows.
"""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton")

from wellhead.dispatch.crosscompile import compile_for
from wellhead.dispatch.spec import KernelBuild
from wellhead.ops.topk.spec import builds


@pytest.mark.parametrize("build", {build.kernel.__name__: build for build in builds()}.values(), ids=lambda b: b.name)
def test_top_k_of_one_entry(build: KernelBuild) -> None:
    one = dataclasses.replace(
        build, signature={**build.signature, "k": "constexpr"}, constants={**build.constants, "k": 1}
    )
    assert compile_for(one, "sm120").spill_bytes == 0
