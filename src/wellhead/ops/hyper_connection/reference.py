"""Manifold-constrained hyper-connections (mHC): n residual streams, mixed before and after every sub-layer.

A token carries n streams of width d. `pre` contracts them to the sub-layer's input and derives, from the same
streams, the weights with which `post` writes the sub-layer's output back and mixes the streams.
Source: DeepSeek-V4 reference inference (hc_pre, hc_post, hc_head); Sinkhorn-Knopp makes the mixing doubly
stochastic. All arithmetic is fp32; results that are activations are rounded once to the streams' dtype.
"""

from __future__ import annotations

import torch

from wellhead.ops.linear.reference import pad_rows, product


def mixing_logits(streams: torch.Tensor, fn: torch.Tensor, norm_eps: float) -> torch.Tensor:
    """z = (fn . x) * rsqrt(mean(x^2) + eps) with x the flattened streams [T, n*d]; fn [m, n*d] -> fp32 [T, m]."""
    x = streams.flatten(-2).float()
    return product(x, fn) * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_eps)


def sinkhorn(logits: torch.Tensor, iterations: int, eps: float) -> torch.Tensor:
    """Softmax over the last axis (+ eps), a column step, then `iterations - 1` times {row step, column step}.

    logits fp32 [..., n, n], row j the source stream, column k the destination. A step divides by (sum + eps).
    """
    shape, n = logits.shape, logits.shape[-1]
    c = (torch.softmax(logits, -1) + eps).reshape(-1, n, n)
    # a product with ones is a sum and its broadcast in one operation, which counts over 39 tiny steps
    ones, offset = c.new_ones(n, n).expand_as(c), c.new_full((1, n, n), eps)
    c = c / torch.baddbmm(offset, ones, c)
    for _ in range(iterations - 1):
        c = c / torch.baddbmm(offset, c, ones)
        c = c / torch.baddbmm(offset, ones, c)
    return c.reshape(shape)


def split_mixing(
    z: torch.Tensor, base: torch.Tensor, scale: torch.Tensor, n: int, hc_eps: float, iterations: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z fp32 [T, n*(n+2)] -> sigmoid + eps [T, n], 2 sigmoid [T, n], sinkhorn [T, n, n]."""
    pre = torch.sigmoid(z[..., :n] * scale[0] + base[:n]) + hc_eps
    post = 2.0 * torch.sigmoid(z[..., n : 2 * n] * scale[1] + base[n : 2 * n])
    logits = (z[..., 2 * n :] * scale[2] + base[2 * n :]).unflatten(-1, (n, n))
    return pre, post, sinkhorn(logits, iterations, hc_eps)


def contract(streams: torch.Tensor, pre: torch.Tensor) -> torch.Tensor:
    """u = sum_j pre_j X_j, summed in fp32, rounded to the streams' dtype: [T, n, d] -> [T, d]."""
    return (streams.float() * pre.unsqueeze(-1)).sum(-2).to(streams.dtype)


def pre(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    *,
    norm_eps: float,
    hc_eps: float,
    iterations: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sub-layer input and write-back weights: streams [T, n, d] -> (u [T, d], post fp32 [T, n], comb fp32 [T, n, n]).

    fn fp32 [n*(n+2), n*d], base fp32 [n*(n+2)], scale fp32 [3] (pre, post, comb).
    """
    tokens, n = streams.shape[:2]
    z = pad_rows(mixing_logits(streams, fn, norm_eps))
    pre_weight, post_weight, comb = (m[:tokens] for m in split_mixing(z, base, scale, n, hc_eps, iterations))
    return contract(streams, pre_weight), post_weight, comb


def post(y: torch.Tensor, streams: torch.Tensor, post_weight: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
    """X'_k = post_k y + sum_j comb_jk X_j in fp32, rounded once: y [T, d], streams [T, n, d] -> [T, n, d]."""
    mixed = post_weight.unsqueeze(-1) * y.float().unsqueeze(-2)
    # a sum of n terms, not a batch of 4x4 products
    for weight, stream in zip(comb.unsqueeze(-1).unbind(-3), streams.float().unsqueeze(-2).unbind(-3), strict=True):
        mixed = torch.addcmul(mixed, weight, stream)
    return mixed.to(streams.dtype)


def head(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    *,
    norm_eps: float,
    hc_eps: float,
) -> torch.Tensor:
    """Final contraction before the output norm: fn fp32 [n, n*d], base [n], scale [1] -> [T, d]."""
    z = pad_rows(mixing_logits(streams, fn, norm_eps))
    return contract(streams, (torch.sigmoid(z * scale + base) + hc_eps)[: streams.shape[0]])
