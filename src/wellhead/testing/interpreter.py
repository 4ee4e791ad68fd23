"""Triton's interpreter with the card's rounding: six of its operations give other numbers than a GPU does.

In Triton 3.6 to 3.9 the interpreter multiplies the *bit patterns* of bf16 operands in `tl.dot` and in products, leaves
the order of a dot's sums to a BLAS, which on some processors takes another for the last rows, truncates fp32 to bf16
instead of rounding to nearest even, rounds fp32 to e4m3 without a carry, and rounds the product inside `tl.fma`; and it
has no `tl.dot_scaled` of E4M3. `repair` replaces these, so that a kernel that runs on the CPU
rounds where and how it does on the card. It changes Triton for the whole process: tests call it, nothing else does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from wellhead.formats import e4m3, ue8m0

E4M3_MAX = 448.0


def round_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 -> uint16 codes of bf16, to nearest even, NaN stays NaN."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def widen_bf16(codes: np.ndarray) -> np.ndarray:
    """uint16 codes of bf16 -> fp32, exact."""
    return (codes.astype(np.uint32) << 16).view(np.float32)


def round_e4m3(values: np.ndarray) -> np.ndarray:
    """fp32 -> uint8 codes of e4m3fn, to nearest even, finite values beyond 448 saturate (cvt.rn.satfinite)."""
    wide = torch.from_numpy(np.ascontiguousarray(values)).clamp(-E4M3_MAX, E4M3_MAX)
    return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """fp32 a b + c through fp64: the product is exact, and the sum's second rounding matters once in 2^29."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """fp32 a b through fp64: an order of the sums then changes no bit, or one in 2^29."""
    return np.matmul(a, b, dtype=np.float64).astype(np.float32)


def scaled_e4m3(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """fp32 of E4M3 codes [rows, K] times 2^(byte - 127), scale bytes [rows, K / 32]."""
    values = e4m3.decode(torch.from_numpy(np.ascontiguousarray(codes).view(np.uint8)))
    factors = ue8m0.decode(torch.from_numpy(np.ascontiguousarray(scale).view(np.uint8)))
    return (values * factors.repeat_interleave(32, dim=-1)).numpy()


def repair() -> None:
    """Give the interpreter the card's rounding. Calling it twice changes nothing more."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    if getattr(builder, "rounds_like_the_card", False):
        return
    dot, cast, convert = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp

    def widen(operand: Any) -> np.ndarray:
        kind = operand.dtype.scalar
        if kind == tl.bfloat16:
            return widen_bf16(operand.data)
        if kind == tl.float8e4nv:
            return e4m3.decode(torch.from_numpy(np.ascontiguousarray(operand.data).view(np.uint8))).numpy()
        return np.asarray(operand.data)

    def create_dot(self: Any, a: Any, b: Any, c: Any, *rest: Any) -> Any:
        if c.dtype.scalar != tl.float32:
            return dot(self, a, b, c, *rest)
        return handle(product(widen(a), widen(b)) + c.data, tl.float32)

    def rounded(source: Any, kind: Any) -> Any:
        """The handle of `source` cast to `kind`, or None where Triton's own cast is right."""
        if source.dtype.scalar != tl.float32:
            return None
        if kind.scalar == tl.bfloat16:
            return handle(round_bf16(source.data), kind.scalar)
        if kind.scalar == tl.float8e4nv:
            return handle(round_e4m3(source.data), kind.scalar)
        return None

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        found = rounded(source, kind)
        return cast(self, source, kind) if found is None else found

    def create_fp_to_fp(self: Any, source: Any, kind: Any, mode: Any) -> Any:
        found = rounded(source, kind)
        return convert(self, source, kind, mode) if found is None else found

    multiply = builder.create_fmul

    def create_fmul(self: Any, a: Any, b: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return multiply(self, a, b)
        return handle(round_bf16(widen_bf16(a.data) * widen_bf16(b.data)), tl.bfloat16)

    def create_dot_scaled(
        self: Any, a: Any, a_scale: Any, a_format: Any, b: Any, b_scale: Any, b_format: Any, *rest: Any
    ) -> Any:
        if a.dtype.scalar != tl.float8e4nv or b.dtype.scalar != tl.float8e4nv or None in (a_scale, b_scale):
            raise NotImplementedError("tl.dot_scaled under the interpreter: E4M3 by E4M3, both with scales")
        wide = product(scaled_e4m3(a.data, a_scale.data), scaled_e4m3(b.data.T, b_scale.data).T)
        return handle(wide + rest[-1].data, tl.float32)

    multiply_add = builder.create_fma

    def create_fma(self: Any, a: Any, b: Any, c: Any) -> Any:
        if a.dtype.scalar != tl.float32:
            return multiply_add(self, a, b, c)
        return handle(fused(a.data, b.data, c.data), a.dtype.scalar)

    builder.create_fma, builder.create_fmul, builder.create_dot_scaled = create_fma, create_fmul, create_dot_scaled
    builder.create_dot, builder.cast_impl, builder.create_fp_to_fp = create_dot, cast_impl, create_fp_to_fp
    for name in ("create_fp_ext", "create_fp_trunc", "create_si_to_fp", "create_ui_to_fp"):
        setattr(builder, name, cast_impl)
    builder.rounds_like_the_card = True
