"""y = x w^T of bf16 rows and bf16 weights on tensor cores, fp32 sums, one launch."""

import triton
import triton.language as tl

from wellhead.ops.dependent_launch import after_producers


@triton.jit(do_not_specialize=["TOKENS"])
def product_kernel(
    x, w, y,
    TOKENS, N, K, X_STRIDE,
    M: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y fp32 or bf16 [TOKENS, N] of x bf16 rows X_STRIDE apart and w bf16 [N, K], K a multiple of 128.

    One program per (BN rows of w, M tokens).
    """
    row, token = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * M + tl.arange(0, M)
    used, inside, k = (token < TOKENS)[:, None], (row < N)[:, None], tl.arange(0, 128)[None, :]
    x_at = x + token.to(tl.int64)[:, None] * X_STRIDE + k
    w_at = w + row.to(tl.int64)[:, None] * K + k
    after_producers(PDL)
    acc = tl.zeros((M, BN), dtype=tl.float32)
    for at in tl.range(0, K, 128, num_stages=STAGES):
        a = tl.load(x_at + at, mask=used, other=0.0)
        b = tl.load(w_at + at, mask=inside, other=0.0)
        acc = tl.dot(a, tl.trans(b), acc)
    place = token.to(tl.int64)[:, None] * N + row[None, :]
    tl.store(y + place, acc.to(y.dtype.element_ty), mask=used & (row < N)[None, :])
