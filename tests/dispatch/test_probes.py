"""The compiled facts of dispatch/capability.py, compiled again with the installed Triton."""

from __future__ import annotations

import re

import pytest

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, CompilationError  # noqa: E402

from wellhead.dispatch import capability  # noqa: E402


def fp8_dot(a, b, c):  # type: ignore[no-untyped-def]
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None, :]
    x, y = tl.load(a + at).to(tl.float8e4nv, bitcast=True), tl.load(b + at).to(tl.float8e4nv, bitcast=True)
    tl.store(c + at, tl.dot(x, y))


def block_scaled_dot(a, b, c):  # type: ignore[no-untyped-def]
    i, group = tl.arange(0, 128), tl.arange(0, 4)
    at, scale_at = i[:, None] * 128 + i[None, :], i[:, None] * 4 + group[None, :]
    x, y = tl.load(a + at).to(tl.float8e4nv, bitcast=True), tl.load(b + at).to(tl.float8e4nv, bitcast=True)
    sx, sy = tl.load(a + scale_at), tl.load(b + scale_at)
    tl.store(c + at, tl.dot_scaled(x, sx, "e4m3", y.T, sy, "e4m3"))


def convert(a, b, c):  # type: ignore[no-untyped-def]
    i = tl.arange(0, 128)
    tl.store(c + i, tl.load(a + i).to(tl.float8e4nv, bitcast=True).to(tl.float32))


def descriptor_load(a, b, c):  # type: ignore[no-untyped-def]
    i = tl.arange(0, 64)
    x = tl.make_tensor_descriptor(a, [128, 128], [128, 1], [64, 64]).load([64, 0])
    tl.store(c + i[:, None] * 64 + i[None, :], x.to(tl.float32))


PROBES = {
    "fp8_mma": (fp8_dot, r"mma\S*(e4m3\.e4m3|kind::f8f6f4)"),
    "block_scaled_mma": (block_scaled_dot, r"mma\S*kind::mxf8f6f4\.block_scale"),
    "fp8e4nv_conversion": (convert, r"cvt\S*e4m3"),
    "tma_load": (descriptor_load, r"cp\.async\.bulk\.tensor"),
}
NUMBERS = {arch: int(arch[2:]) for arch in capability.ARCHITECTURES}


@pytest.mark.parametrize("arch", capability.ARCHITECTURES)
def test_the_table_says_what_the_compiler_does(arch: str) -> None:
    features = capability.features_of(capability.simulated(arch), triton.__version__)
    for name, (function, instruction) in PROBES.items():
        kernel = triton.JITFunction(function)
        signature = {"a": "*u8", "b": "*u8", "c": "*fp32"}
        try:
            ptx = triton.compile(ASTSource(kernel, signature), target=GPUTarget("cuda", NUMBERS[arch], 32)).asm["ptx"]
        except CompilationError:
            ptx = ""
        found = re.search(instruction, ptx) is not None
        assert features[name].present == found, (
            f"{features[name]}: but the PTX {'has' if found else 'lacks'} {instruction}"
        )
        assert features[name].evidence == "compiled"
