"""Sums along the rows of a tile on CUDA cores, for products of one token."""

import triton
import triton.language as tl


@triton.jit
def near_sums(products, NEAR: tl.constexpr):
    """fp32 [ROWS, COLUMNS / NEAR] of fp32 [ROWS, COLUMNS]: each thread adds up by itself the NEAR neighbours that it
    loaded together, so that a row takes few registers until its end.
    """
    columns: tl.constexpr = products.shape[1] // NEAR
    return tl.sum(tl.reshape(products, (products.shape[0], columns, NEAR)), axis=2)
