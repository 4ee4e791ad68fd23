"""Hyper-connection kernels against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from wellhead.formats import block_fp8
from wellhead.ops.addends import Addends
from wellhead.ops.hyper_connection import api, configs, reference
from wellhead.ops.hyper_connection.spec import SPEC
from wellhead.ops.moe import layout
from wellhead.ops.norm_quant.api import Rounded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS: dict[str, Any] = {"norm_eps": 1e-6, "hc_eps": 1e-6, "iterations": 3}
SHIPPED = {**EPS, "iterations": 20}  # where the interpreter's time allows
# z is a sum of 4d exact products in another order: 4d * 2^-24 of the sum of sizes at the very worst, the root of that
# in practice; sigmoid and Sinkhorn do not magnify it. Measured at d=4096: 8e-7.
CLOSE = {"rtol": 0.0, "atol": 4e-6}


def draw(tokens: int, d: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of the SPEC's own generator, for any number of tokens."""
    from wellhead.ops.hyper_connection import spec

    return spec.make({"tokens": tokens, "n": 4, "d": d})(torch.Generator().manual_seed(seed), DEVICE)


class Run:
    """Outputs born NaN, with guard rows after the batch that must stay NaN."""

    def __init__(self, tokens: int, d: int, constants: dict[str, Any] = EPS) -> None:
        self.tokens = tokens
        self.all = {
            "streams": torch.full((tokens + 3, 4, d), torch.nan, device=DEVICE).bfloat16(),
            "out": torch.full((tokens + 3, d), torch.nan, device=DEVICE).bfloat16(),
            "post": torch.full((tokens + 3, 4), torch.nan, device=DEVICE),
            "comb": torch.full((tokens + 3, 4, 4), torch.nan, device=DEVICE),
        }
        self.plan = api.plan(tokens + 3, d, 4, device=DEVICE, **constants)
        self.plan.partial.fill_(torch.nan)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.all[name][: self.tokens]

    def check_guards(self) -> None:
        for name, tensor in self.all.items():
            assert tensor[self.tokens :].isnan().all(), f"{name}: rows past the batch were written"
        assert self.plan.partial[self.tokens :].isnan().all()


def site(data: dict[str, torch.Tensor], norm: bool) -> api.Site:
    return api.Site(data["fn"], data["base"], data["scale"], data["norm_weight"] if norm else None)


def check_bf16(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Within the SPEC's budget everywhere, and the same bits nearly everywhere."""
    torch.testing.assert_close(found.float(), wanted.float(), rtol=SPEC.error.relative, atol=SPEC.error.absolute)
    assert (found != wanted).float().mean() <= 2e-3


def normed(u: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = u.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight.float()).bfloat16()


SHAPES = [(1, 256), (17, 256), (5, 192), (1, 4096), (1, 7168)]


@pytest.mark.parametrize("d", [256, 4096])
def test_mixing_weights_beside_the_contraction(d: int) -> None:
    """A launch of their own: the same row, and weights up to the order of a sum."""
    data, alone, both = draw(3, d), Run(3, d), Run(3, d)
    api.pre(both.plan, data["streams"], site(data, norm=True), both["out"], both["post"], both["comb"])
    given = (data["streams"], site(data, norm=True), alone["out"], alone["post"], alone["comb"])
    api.pre(alone.plan, *given, beside=nullcontext)
    assert torch.equal(alone["out"], both["out"])
    for name in ("post", "comb"):
        torch.testing.assert_close(alone[name], both[name], **CLOSE)
    alone.check_guards()


@pytest.mark.parametrize("tokens", [1, 5, 17])
def test_a_sum_taken_on_the_way_in_is_that_of_its_own_launch(tokens: int) -> None:
    """Bit for bit, with rows of NaN that no id in range names."""
    d, places, first, count = 256, 3, 4, 8
    data, whole, summed = draw(tokens, d), Run(tokens, d), Run(tokens, d)
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(-1, 16, (tokens, places), dtype=torch.int32, generator=generator)
    rows = torch.randn(tokens * places, d, generator=generator).bfloat16()
    rows[((ids < first) | (ids >= first + count)).flatten()] = torch.nan
    addends = Addends(rows.to(DEVICE), ids.to(DEVICE), first, count, data["y"])
    y = torch.full_like(data["y"], torch.nan)
    addends.add_up(y)
    assert torch.equal(y, addends.total())
    for run, given in ((whole, y), (summed, addends)):
        api.post_pre(
            run.plan, given, data["streams"], data["post_weight"], data["comb"], site(data, norm=True), run["streams"],
            run["out"], run["post"], run["comb"],
        )  # fmt: skip
    for name in ("streams", "out", "post", "comb"):
        assert torch.equal(whole[name], summed[name]), name
    summed.check_guards()
    with pytest.raises(ValueError, match=r"rows is torch.bfloat16 \(2,"):
        Addends(addends.rows[:2], addends.ids, first, count, data["y"]).add_up(y)


@pytest.mark.parametrize(("tokens", "d"), SHAPES)
def test_pre(tokens: int, d: int) -> None:
    data, run = draw(tokens, d), Run(tokens, d, SHIPPED)
    api.pre(run.plan, data["streams"], site(data, norm=False), run["out"], run["post"], run["comb"])
    u, post, comb = reference.pre(data["streams"], data["fn"], data["base"], data["scale"], **SHIPPED)
    torch.testing.assert_close(run["post"], post, **CLOSE)
    torch.testing.assert_close(run["comb"], comb, **CLOSE)
    check_bf16(run["out"], u)
    run.check_guards()


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize(("tokens", "d"), [(1, 256), (3, 384), (1, 4096)])
def test_the_row_is_rounded_as_norm_quant_rounds_it(tokens: int, d: int, halved: bool) -> None:
    data, run = draw(tokens, d, 4), Run(tokens, d, SHIPPED)
    codes, halves = (torch.zeros(tokens, d, dtype=torch.float8_e4m3fn, device=DEVICE) for _ in range(2))
    scales = torch.zeros(tokens, d // 128, dtype=torch.uint8, device=DEVICE)
    rounded = Rounded(codes, scales, halves if halved else None)
    outputs = run["out"], run["post"], run["comb"]
    api.pre(run.plan, data["streams"], site(data, norm=True), *outputs, rounded)
    expected, scale = block_fp8.quantize_rows(run["out"].cpu())
    assert torch.equal(codes.cpu().view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(rounded.scale.cpu(), scale)
    if halved:
        assert torch.equal(halves.cpu().view(torch.uint8), layout.halves(expected).view(torch.uint8))
    with pytest.raises(ValueError, match=r"rounded.scale is .*expected contiguous torch.uint8"):
        api.pre(run.plan, data["streams"], site(data, norm=True), *outputs, Rounded(codes, rounded.scale[:, :1]))


def test_rows_that_are_no_whole_groups_are_not_rounded() -> None:
    data, run = draw(1, 192, 4), Run(1, 192, SHIPPED)
    codes = torch.zeros(1, 192, dtype=torch.float8_e4m3fn, device=DEVICE)
    rounded = Rounded(codes, torch.zeros(1, 1, dtype=torch.uint8, device=DEVICE))
    with pytest.raises(ValueError, match=r"rows of 192 cannot be rounded; expected a multiple of 128"):
        api.pre(run.plan, data["streams"], site(data, norm=True), run["out"], run["post"], run["comb"], rounded)


@pytest.mark.parametrize(("tokens", "d"), SHAPES[:-1])
def test_post_pre_is_post_then_pre(tokens: int, d: int) -> None:
    data, run, apart = draw(tokens, d, 1), Run(tokens, d), Run(tokens, d)
    mixing = data["post_weight"], data["comb"]
    wanted = reference.post(data["y"], data["streams"], *mixing)
    api.post(data["y"], data["streams"], *mixing, apart["streams"])
    check_bf16(apart["streams"], wanted)
    here = site(data, norm=True)
    api.pre(apart.plan, apart["streams"], here, apart["out"], apart["post"], apart["comb"])
    u, post, comb = reference.pre(apart["streams"], data["fn"], data["base"], data["scale"], **EPS)
    torch.testing.assert_close(apart["post"], post, **CLOSE)
    torch.testing.assert_close(apart["comb"], comb, **CLOSE)
    check_bf16(apart["out"], normed(u, data["norm_weight"]))

    run_outputs = run["streams"], run["out"], run["post"], run["comb"]
    api.post_pre(run.plan, data["y"], data["streams"], *mixing, here, *run_outputs)
    assert torch.equal(run["streams"], apart["streams"])
    torch.testing.assert_close(run["post"], apart["post"], **CLOSE)
    torch.testing.assert_close(run["comb"], apart["comb"], **CLOSE)
    check_bf16(run["out"], apart["out"])
    run.check_guards()
    apart.check_guards()


@pytest.mark.parametrize("tokens", [1, 18])
def test_post_pre_in_place(tokens: int) -> None:
    data, run = draw(tokens, 256, 2), Run(tokens, 256)
    outputs = run["streams"], run["out"], run["post"], run["comb"]
    arguments = data["y"], data["streams"], data["post_weight"], data["comb"], site(data, norm=True)
    api.post_pre(run.plan, *arguments, *outputs)
    out = torch.full_like(run["out"], torch.nan)
    api.post_pre(run.plan, *arguments, data["streams"], out, data["post_weight"], data["comb"])
    for found, name in (
        (data["streams"], "streams"),
        (out, "out"),
        (data["post_weight"], "post"),
        (data["comb"], "comb"),
    ):
        assert torch.equal(found, run[name]), name


@pytest.mark.parametrize(("tokens", "d"), [(1, 256), (18, 256), (1, 4096)])
@pytest.mark.parametrize("norm", [False, True])
def test_head(tokens: int, d: int, norm: bool) -> None:
    data, run = draw(tokens, d, 3), Run(tokens, d)
    data |= {"fn": data["fn"][:4].contiguous(), "base": data["base"][:4], "scale": data["scale"][:1]}
    api.head(run.plan, data["streams"], site(data, norm), run["out"])
    u = reference.head(data["streams"], data["fn"], data["base"], data["scale"], norm_eps=1e-6, hc_eps=1e-6)
    check_bf16(run["out"], normed(u, data["norm_weight"]) if norm else u)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    data, full = draw(18, 256, 4), Run(18, 256)
    here = site(data, norm=True)
    names = ("y", "streams", "post_weight", "comb")
    outputs = full["streams"], full["out"], full["post"], full["comb"]
    api.post_pre(full.plan, *(data[name] for name in names), here, *outputs)
    for row in (15, 16, 17):
        for rows in (slice(row, row + 1), slice(max(0, row - 2), row + 1)):
            some = Run(rows.stop - rows.start, 256)
            outputs = some["streams"], some["out"], some["post"], some["comb"]
            api.post_pre(some.plan, *(data[name][rows].contiguous() for name in names), here, *outputs)
            for name in some.all:
                assert torch.equal(some[name][-1], full[name][row]), (row, rows, name)


def test_tiles_a_program_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    data, one, three = draw(35, 64, 4), Run(35, 64), Run(35, 64)
    assert [configs.tiles_a_program(tokens) for tokens in (1, 256, 257, 4096)] == [1, 1, 2, 8]
    for run, tiles in ((one, 1), (three, 3)):
        monkeypatch.setattr(configs, "tiles_a_program", lambda tokens, tiles=tiles: tiles)
        api.pre(run.plan, data["streams"], site(data, norm=True), run["out"], run["post"], run["comb"])
    for name in ("out", "post", "comb"):
        assert torch.equal(one[name], three[name]) and not one[name].isnan().any(), name


def test_nan_stays_in_its_row() -> None:
    data, clean, dirty = draw(19, 256, 5), Run(19, 256), Run(19, 256)
    here = site(data, norm=True)

    def go(run: Run) -> None:
        outputs = run["streams"], run["out"], run["post"], run["comb"]
        arguments = data["y"], data["streams"], data["post_weight"], data["comb"]
        api.post_pre(run.plan, *arguments, here, *outputs)

    go(clean)
    data["streams"][7] = torch.nan
    data["y"][16] = torch.inf
    go(dirty)
    kept = [row for row in range(19) if row not in (7, 16)]
    for name in clean.all:
        assert torch.equal(dirty[name][kept], clean[name][kept]), name
    assert dirty["out"][7].isnan().all()


def test_zero_tokens_launch_nothing() -> None:
    data, run = draw(0, 256), Run(0, 256)
    mixing = data["post_weight"], data["comb"]
    api.post(data["y"], data["streams"], *mixing, run["streams"])
    api.pre(run.plan, data["streams"], site(data, norm=True), run["out"], run["post"], run["comb"])
    run_outputs = run["streams"], run["out"], run["post"], run["comb"]
    api.post_pre(run.plan, data["y"], data["streams"], *mixing, site(data, norm=True), *run_outputs)
    run.check_guards()


def test_what_is_not_supported_is_refused() -> None:
    for d, n, words in ((250, 4, "multiples of 64 up to 8192"), (16384, 4, "up to 8192"), (256, 2, "2 streams")):
        with pytest.raises(ValueError, match=words):
            api.plan(4, d, n, device=DEVICE, **EPS)
    with pytest.raises(ValueError, match=r"hc_eps 0"):
        api.plan(4, 256, 4, device=DEVICE, norm_eps=1e-6, hc_eps=0.0, iterations=20)
    data, run = draw(4, 256), Run(4, 256)
    here, outputs = site(data, norm=True), (run["out"], run["post"], run["comb"])
    with pytest.raises(ValueError, match="at most 2"):
        api.pre(api.plan(2, 256, 4, device=DEVICE, **EPS), data["streams"], here, *outputs)
    with pytest.raises(ValueError, match=r"streams is torch.float32"):
        api.pre(run.plan, data["streams"].float(), here, *outputs)
    with pytest.raises(ValueError, match=r"streams is torch.bfloat16 .* expected contiguous"):
        api.pre(run.plan, draw(8, 256)["streams"][::2], here, *outputs)
    with pytest.raises(ValueError, match=r"fn is .* expected contiguous torch.float32 \(4, 1024\)"):
        api.head(run.plan, data["streams"], here, run["out"])
