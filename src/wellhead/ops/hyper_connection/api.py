"""Hyper-connections by kernels: a plan owns the workspace, run functions only launch.

Source of the mathematics: `reference` in this folder. Nothing here allocates, synchronises or reads a device value
after `plan`; zero tokens launch nothing. Rows of a buffer past `tokens` are neither read nor written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import triton

from wellhead.ops import scratch
from wellhead.ops.addends import Addends
from wellhead.ops.card import launch
from wellhead.ops.checks import expect
from wellhead.ops.hyper_connection import configs, finish_kernels, kernels
from wellhead.ops.hyper_connection.configs import CHANNELS, PRE_ROWS, STREAMS, TILE
from wellhead.ops.norm_quant.api import Rounded, as_bytes

Beside = Callable[[], AbstractContextManager[object]]  # where launches go that nobody waits for yet


@dataclass(frozen=True)
class Site:
    """Parameters of one site: fn fp32 [m, 4d], base fp32 [m], scale fp32 [3] (head: [1]), norm weight bf16 [d] or None.

    m is 24, or 4 for the head.
    """

    fn: torch.Tensor
    base: torch.Tensor
    scale: torch.Tensor
    norm_weight: torch.Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """What `plan` decided: the width, the largest batch, constants, and the fp32 workspace of partial sums."""

    d: int
    max_tokens: int
    norm_eps: float
    hc_eps: float
    iterations: int
    partial: torch.Tensor  # fp32 [max_tokens, d / 64, 32]


def plan(
    max_tokens: int,
    d: int,
    n: int,
    *,
    norm_eps: float,
    hc_eps: float,
    iterations: int,
    device: torch.device | str,
) -> Plan:
    """Check the shape and make the workspace of a batch of up to `max_tokens`. ValueError names what is supported."""
    reason = configs.why_not(d, n)
    if reason is not None:
        raise ValueError(f"hyper_connection: {reason}")
    if max_tokens < 0 or iterations < 1 or not hc_eps > 0 or not norm_eps > 0:
        raise ValueError(
            f"hyper_connection: max_tokens {max_tokens}, iterations {iterations}, hc_eps {hc_eps}, norm_eps {norm_eps}"
            "; expected at least 0, at least 1, and both eps above 0"
        )
    partial = scratch.empty(max_tokens, d // CHANNELS, configs.columns(PRE_ROWS), dtype=torch.float32, device=device)
    return Plan(d, max_tokens, norm_eps, hc_eps, iterations, partial)


def pre(
    plan: Plan, streams: torch.Tensor, site: Site, out: torch.Tensor, post_out: torch.Tensor, comb_out: torch.Tensor,
    rounded: Rounded | None = None, beside: Beside | None = None,
) -> None:  # fmt: skip
    """streams bf16 [T, 4, d] -> out bf16 [T, d] (normed with a weight), post fp32 [T, 4], comb fp32 [T, 4, 4].

    out is sum_j pre_j X_j summed in fp32 and rounded to bf16; the norm is taken of the rounded values and rounded
    once more. `rounded` receives what norm_quant makes of that row without a weight. post and comb are launched in
    beside(), where they have until the next site's post; without it they come with out, in two launches for all.
    """
    tokens = _tokens(plan, streams)
    _check(plan, tokens, site, PRE_ROWS, out)
    _check_mixing(tokens, post_out, comb_out)
    if tokens:
        _project(plan, tokens, streams, site, PRE_ROWS)
        _finish(plan, tokens, streams, site, PRE_ROWS, out, post_out, comb_out, rounded, beside)


def post_pre(
    plan: Plan,
    y: torch.Tensor | Addends,
    streams: torch.Tensor,
    post_weight: torch.Tensor,
    comb: torch.Tensor,
    site: Site,
    streams_out: torch.Tensor,
    out: torch.Tensor,
    post_out: torch.Tensor,
    comb_out: torch.Tensor,
    rounded: Rounded | None = None,
    beside: Beside | None = None,
) -> None:
    """`post` into streams_out, then `pre` of those streams at `site`; y may be a sum that is taken here.

    The streams have the bits that `post` gives; the rest is that of `pre` up to the order of one fp32 sum.

    streams_out may be streams, post_out may be post_weight and comb_out may be comb.
    """
    tokens = _tokens(plan, streams)
    _check(plan, tokens, site, PRE_ROWS, out)
    _check_post(plan.d, tokens, y, streams_out)
    _check_mixing(tokens, post_weight, comb)
    _check_mixing(tokens, post_out, comb_out)
    if tokens:
        _project(plan, tokens, streams, site, PRE_ROWS, (y, post_weight, comb, streams_out))
        _finish(plan, tokens, streams_out, site, PRE_ROWS, out, post_out, comb_out, rounded, beside)


def head(plan: Plan, streams: torch.Tensor, site: Site, out: torch.Tensor) -> None:
    """The final contraction, and the output norm if the site has a weight: streams bf16 [T, 4, d] -> bf16 [T, d]."""
    tokens = _tokens(plan, streams)
    _check(plan, tokens, site, STREAMS, out)
    if tokens:
        _project(plan, tokens, streams, site, STREAMS)
        _finish(plan, tokens, streams, site, STREAMS, out, None, None)


def post(
    y: torch.Tensor, streams: torch.Tensor, post_weight: torch.Tensor, comb: torch.Tensor, out: torch.Tensor
) -> None:
    """X'_k = post_k y + sum_j comb_jk X_j in fp32, rounded once: y [T, d], streams, out bf16 [T, 4, d].

    out may be streams.
    """
    tokens, n, d = streams.shape
    reason = configs.why_not(d, n)
    if reason is not None:
        raise ValueError(f"hyper_connection: {reason}")
    expect("streams", streams, (tokens, n, d), torch.bfloat16)
    _check_post(d, tokens, y, out)
    _check_mixing(tokens, post_weight, comb)
    if tokens:
        build = configs.post_constants(d)
        grid = (triton.cdiv(tokens, build["TILE"]), triton.cdiv(d, build["BLOCK"]))
        kernels.post_kernel[grid](y, streams, post_weight, comb, out, tokens, **build, num_warps=4, **launch())


Mixed = tuple[torch.Tensor | Addends, torch.Tensor, torch.Tensor, torch.Tensor]


def _project(plan: Plan, tokens: int, streams: torch.Tensor, site: Site, m: int, mixed: Mixed | None = None) -> None:
    """Launch the projection; `mixed` is (y, post, comb, streams_out) if the streams are to be written first."""
    tiles = configs.tiles_a_program(tokens)
    grid = (triton.cdiv(tokens, TILE * tiles), plan.d // CHANNELS)
    y, post_weight, comb, out = mixed or (None, None, None, None)
    summed: tuple[Any, ...] = (y, None, None, 0, 0)
    places = 0
    if isinstance(y, Addends):
        summed, places = (y.rows, y.ids, y.last, y.first, y.count), y.ids.shape[1]
    kernels.project_kernel[grid](
        streams, *summed, post_weight, comb, out, site.fn, plan.partial, tokens, tiles,
        **configs.project_constants(plan.d, m, mixed is not None, places), num_warps=4,
        num_stages=configs.project_stages(tiles), **launch(),
    )  # fmt: skip


def _finish(
    plan: Plan,
    tokens: int,
    streams: torch.Tensor,
    site: Site,
    m: int,
    out: torch.Tensor,
    post_out: torch.Tensor | None,
    comb_out: torch.Tensor | None,
    rounded: Rounded | None = None,
    beside: Beside | None = None,
) -> None:
    codes = halves = scale = None
    if rounded is not None:
        if plan.d % 128:
            raise ValueError(f"hyper_connection: rows of {plan.d} cannot be rounded; expected a multiple of 128")
        codes, halves, scale = as_bytes(rounded.codes), as_bytes(rounded.halves), rounded.scale
        for name, tensor in (("rounded.codes", rounded.codes), ("rounded.halves", rounded.halves)):
            if tensor is not None:
                expect(name, tensor, (tokens, plan.d), torch.float8_e4m3fn)
        expect("rounded.scale", scale, (tokens, plan.d // 128), torch.uint8)
    contracted = (streams, plan.partial, site.base, site.scale, site.norm_weight, out, codes, halves, scale)
    options = {
        **configs.contract_constants(plan.d, m, site.norm_weight is not None),
        "num_warps": configs.contract_warps(plan.d), "num_stages": 2, **launch(early=True),
    }  # fmt: skip
    eps = (plan.norm_eps, plan.hc_eps)
    if post_out is not None:
        if beside is None:
            finish_kernels.finish_kernel[(tokens, 2)](*contracted, post_out, comb_out, *eps, plan.iterations, **options)
            return
        with beside():
            finish_kernels.mixing_kernel[(tokens,)](
                plan.partial, site.base, site.scale, post_out, comb_out, *eps, plan.iterations,
                **configs.mixing_constants(plan.d, m), num_warps=1, num_stages=2, **launch(),
            )  # fmt: skip
    finish_kernels.contract_kernel[(tokens,)](*contracted, *eps, **options)


def _tokens(plan: Plan, streams: torch.Tensor) -> int:
    tokens = streams.shape[0]
    if tokens > plan.max_tokens:
        raise ValueError(f"hyper_connection: {tokens} tokens; the plan was made for at most {plan.max_tokens}")
    expect("streams", streams, (tokens, STREAMS, plan.d), torch.bfloat16)
    return tokens


def _check(plan: Plan, tokens: int, site: Site, m: int, out: torch.Tensor) -> None:
    expect("out", out, (tokens, plan.d), torch.bfloat16)
    expect("fn", site.fn, (m, STREAMS * plan.d), torch.float32)
    expect("base", site.base, (m,), torch.float32)
    expect("scale", site.scale, (3 if m == PRE_ROWS else 1,), torch.float32)
    if site.norm_weight is not None:
        expect("norm_weight", site.norm_weight, (plan.d,), torch.bfloat16)


def _check_post(d: int, tokens: int, y: torch.Tensor | Addends, streams_out: torch.Tensor) -> None:
    if isinstance(y, Addends):
        y.check()
    expect("y", y.last if isinstance(y, Addends) else y, (tokens, d), torch.bfloat16)
    expect("streams_out", streams_out, (tokens, STREAMS, d), torch.bfloat16)


def _check_mixing(tokens: int, post_weight: torch.Tensor, comb: torch.Tensor) -> None:
    expect("post", post_weight, (tokens, STREAMS), torch.float32)
    expect("comb", comb, (tokens, STREAMS, STREAMS), torch.float32)
