"""Norm and rounding of rows against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.formats import block_fp8
from wellhead.ops.moe import layout
from wellhead.ops.norm_quant import api, reference
from wellhead.ops.norm_quant.spec import SPEC, WIDTHS, make

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


def drawn(tokens: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    case = make(tokens, d, torch.Generator().manual_seed(seed), DEVICE)
    return case["x"], case["weight"]


def found(
    x: torch.Tensor, weight: torch.Tensor | None, keep: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(codes as bytes, scale, normed) of one run; outputs are born with a byte that no result fills everywhere."""
    tokens, d = x.shape
    codes = torch.full((tokens, d), 0x7F, dtype=torch.uint8, device=DEVICE)
    scale = torch.full((tokens, d // 128), 255, dtype=torch.uint8, device=DEVICE)
    keep = keep and weight is not None
    normed = torch.full((tokens, d), torch.nan, dtype=torch.bfloat16, device=DEVICE) if keep else None
    api.plan(d, EPS).run(x, weight, codes.view(torch.float8_e4m3fn), scale, normed)
    return codes.cpu(), scale.cpu(), None if normed is None else normed.cpu()


def quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = block_fp8.quantize_rows(rows.cpu())
    return codes.view(torch.uint8), scale


def same(left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])


@pytest.mark.parametrize("d", [128, 384, *WIDTHS])
def test_norm_within_the_budget_and_its_rounding_exact(d: int) -> None:
    x, weight = drawn(3, d)
    codes, scale, normed = found(x, weight)
    expected = reference.rms_norm(x.cpu(), weight.cpu(), EPS).float()
    assert normed is not None
    assert bool(((normed.float() - expected).abs() <= SPEC.error.absolute + SPEC.error.relative * expected.abs()).all())
    assert same((codes, scale), quantised(normed))
    assert same(found(x, weight, keep=False)[:2], (codes, scale))


@pytest.mark.parametrize("d", WIDTHS)
def test_where_the_sum_is_exact_so_is_everything(d: int) -> None:
    """Integers up to 16: every order of the sum of squares gives the same fp32 number."""
    generator = torch.Generator().manual_seed(d)
    x = torch.randint(-16, 17, (2, d), generator=generator).bfloat16()
    weight = drawn(1, d)[1]
    codes, scale, normed = found(x.to(DEVICE), weight)
    expected = reference.rms_norm(x, weight.cpu(), EPS)
    if DEVICE == "cpu":  # a card's rsqrt is approximate
        assert normed is not None and torch.equal(normed, expected) and same((codes, scale), quantised(expected))
    else:
        assert normed is not None and same((codes, scale), quantised(normed))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("d", [128, *WIDTHS])
def test_halves_are_the_codes_in_the_order_of_nibbles(d: int, normed: bool, together: bool) -> None:
    x, weight = drawn(3, d, seed=2)
    codes, halves = (torch.zeros(3, d, dtype=torch.float8_e4m3fn, device=DEVICE) for _ in range(2))
    scale = torch.zeros(3, d // 128, dtype=torch.uint8, device=DEVICE)
    api.plan(d, EPS).run(x, weight if normed else None, codes if together else None, scale, halves=halves)
    expected, expected_scale, _ = found(x, weight if normed else None)
    assert torch.equal(halves.cpu().view(torch.uint8), layout.halves(expected))
    assert torch.equal(scale.cpu(), expected_scale)
    if together:
        assert torch.equal(codes.cpu().view(torch.uint8), expected)


@pytest.mark.parametrize("d", WIDTHS)
def test_rounding_alone_is_exact(d: int) -> None:
    x, _ = drawn(2, d, seed=1)
    assert same(found(x, None)[:2], quantised(x))


def test_every_bf16_size_and_the_edges_of_a_scale() -> None:
    """Each finite bf16 size once, among its neighbours and among sizes far apart; then 448 * 2^k as the largest."""
    sizes = torch.arange(0, 0x7F80, dtype=torch.int16).view(torch.bfloat16)
    every = torch.cat((sizes, torch.zeros(128).bfloat16()))
    every[1::2] *= -1
    far_apart = every.reshape(128, 256).T.reshape(4, -1)
    for rows in (every.reshape(4, 8192), every.reshape(8192, 4).T.contiguous(), far_apart):
        assert same(found(rows.to(DEVICE), None)[:2], quantised(rows))
    edges = torch.randn(33 * 3, 128, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    top = 448 * 2.0 ** torch.arange(-16, 17).repeat_interleave(3)
    edges = (edges * top[:, None]).bfloat16()
    edges[:, 5] = (top * torch.tensor([1 - 2.0**-8, 1, 1 + 2.0**-7]).repeat(33)).bfloat16()
    assert same(found(edges.to(DEVICE), None)[:2], quantised(edges))


def test_no_rows_zero_rows_and_a_slice_of_a_wider_product() -> None:
    x, weight = drawn(5, 1536)
    assert found(x[:0], weight)[0].shape == (0, 1536)
    codes, scale, normed = found(torch.zeros_like(x), weight)
    assert normed is not None and not normed.any() and not codes.any() and bool((scale == 105).all())
    left = drawn(1, 1024)[1]
    whole = found(x[:, :1024].contiguous(), left)
    sliced = found(x[:, :1024], left)
    assert torch.equal(sliced[0], whole[0]) and torch.equal(sliced[1], whole[1])
    assert torch.equal(found(x[:1, :1024], left)[0], whole[0][:1])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight = drawn(4, 4096)
    codes, scale, _ = found(x, weight)
    x[[0, 2]] = torch.nan
    other = found(x, weight)
    for row in (1, 3):
        assert torch.equal(other[0][row], codes[row]) and torch.equal(other[1][row], scale[row])


def test_normed_may_be_x() -> None:
    x, weight = drawn(2, 256)
    expected = found(x, weight)
    codes = torch.empty(2, 256, dtype=torch.float8_e4m3fn, device=DEVICE)
    scale = torch.empty(2, 2, dtype=torch.uint8, device=DEVICE)
    api.plan(256, EPS).run(x, weight, codes, scale, x)
    assert expected[2] is not None and torch.equal(x.cpu(), expected[2])
    assert same((codes.view(torch.uint8).cpu(), scale.cpu()), expected[:2])


def test_what_is_refused() -> None:
    for d in (0, 64, 200, 16512):
        with pytest.raises(ValueError, match=rf"d={d}: a multiple of 128 from 128 to 16384"):
            api.plan(d, EPS)
    with pytest.raises(ValueError, match=r"eps=-1"):
        api.plan(256, -1)
    x, weight = drawn(2, 256)
    codes, scale = torch.empty(2, 256, dtype=torch.float8_e4m3fn), torch.empty(2, 2, dtype=torch.uint8)
    for arguments, reason in (
        ((x.float(), weight, codes, scale), r"x is torch.float32 \(2, 256\)"),
        ((x.new_empty(2, 264)[:, :256], weight, codes, scale), r"x: rows 264 elements apart"),
        ((x.new_empty(256, 2).T, weight, codes, scale), r"dense rows"),
        ((x, weight.float(), codes, scale), r"weight is torch.float32"),
        ((x, weight, codes[:1], scale), r"codes is torch.float8_e4m3fn \(1, 256\)"),
        ((x, weight, codes, scale[:, :1]), r"scale is torch.uint8 \(2, 1\)"),
        ((x, None, codes, scale, x), r"normed is given without a weight"),
    ):
        with pytest.raises(ValueError, match=reason):
            api.plan(256, EPS).run(*arguments)
