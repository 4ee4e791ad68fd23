"""Small kernels whose compiled form is known, built as compiler inputs whether or not the interpreter is on."""

from __future__ import annotations

import triton.language as tl
from triton.runtime import JITFunction

from wellhead.dispatch.spec import KernelBuild


def scale(x_ptr, y_ptr, count, stride, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offset, mask=offset < count, other=0.0)
    tl.store(y_ptr + offset, x * x + tl.sum(x, 0), mask=offset < count)


def product(a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + n[None, :] * K + k[:, None])
    tl.store(c_ptr + m[:, None] * N + n[None, :], tl.dot(a, b))


def block_scaled(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k, s = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K), tl.arange(0, K // 32)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + n[None, :] * K + k[:, None])
    a_scale = tl.load(a_scale_ptr + m[:, None] * (K // 32) + s[None, :])
    b_scale = tl.load(b_scale_ptr + n[:, None] * (K // 32) + s[None, :])
    c = tl.dot_scaled(a, a_scale, "e4m3", b, b_scale, "e4m3")
    tl.store(c_ptr + m[:, None] * N + n[None, :], c)


def polynomial(x_ptr, y_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    total = x
    for _ in tl.static_range(4):
        total = total * x + 0.5
        total = total * x - x
        total = total + x
    tl.store(y_ptr + tl.arange(0, BLOCK), total)


def build_scale(stride: str = "i32", x: str = "*fp32") -> KernelBuild:
    kinds = {"x_ptr": x, "y_ptr": "*fp32", "count": "i32", "stride": stride, "BLOCK": "constexpr"}
    return KernelBuild("scale", JITFunction(scale), kinds, {"BLOCK": 1024})


def build_product(kind: str, m: int = 16, n: int = 32, k: int = 64, num_warps: int = 4) -> KernelBuild:
    kinds = {"a_ptr": kind, "b_ptr": kind, "c_ptr": "*fp32", "M": "constexpr", "N": "constexpr", "K": "constexpr"}
    return KernelBuild(f"product[{kind}]", JITFunction(product), kinds, {"M": m, "N": n, "K": k}, num_warps)


def build_block_scaled() -> KernelBuild:
    kinds = {"a_ptr": "*fp8e4nv", "a_scale_ptr": "*u8", "b_ptr": "*fp8e4nv", "b_scale_ptr": "*u8", "c_ptr": "*fp32"}
    kinds |= dict.fromkeys(("M", "N", "K"), "constexpr")
    return KernelBuild("block_scaled", JITFunction(block_scaled), kinds, {"M": 16, "N": 64, "K": 128})


def build_polynomial() -> KernelBuild:
    kinds = {"x_ptr": "*fp32", "y_ptr": "*fp32", "BLOCK": "constexpr"}
    return KernelBuild("polynomial", JITFunction(polynomial), kinds, {"BLOCK": 1024})
