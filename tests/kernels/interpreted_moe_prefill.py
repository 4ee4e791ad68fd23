"""MXFP4 experts for many tokens against the reference: by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.formats import block_fp8, mxfp4
from wellhead.ops.linear.reference import round_input
from wellhead.ops.moe import api, layout, prefill_api, reference
from wellhead.ops.moe.prefill_api import W4A8, W4A8_BF16, W4A16, Product
from wellhead.ops.moe.spec import SPEC, TIGHT, make, prepare_reference
from wellhead.ops.routing.api import plan_lists
from wellhead.testing.agreement import compare, results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = 1.0  # low enough to bite


@pytest.fixture(params=["w4a8", "w4a8-bf16", "w4a16"])
def product(request: pytest.FixtureRequest) -> Product:
    if request.param == "w4a8" and request.config.getoption("--code-of", default=None):
        pytest.skip("sm_90a has no block-scaled instructions, nor has sm_80")
    return prefill_api.PRODUCTS[request.param]


def drawn(tokens: int, d: int = 256, m: int = 256, experts: int = 3, top_k: int = 2) -> dict[str, torch.Tensor]:
    return make(tokens, d, m, experts, top_k, torch.Generator().manual_seed(tokens), DEVICE)


def found(
    case: dict[str, torch.Tensor], product: Product, *, first: int = 0, planned: int | None = None
) -> torch.Tensor:
    """What the kernels compute, whatever the number of tokens; every workspace starts as NaN."""
    (tokens, d), (experts, _, _), top_k = case["x"].shape, case["w2"].shape, case["ids"].shape[1]
    m = case["w13"].shape[1] // 2
    plan = prefill_api.plan_prefill(planned or tokens, d, m, experts, top_k, LIMIT, product, device=DEVICE)
    lists = plan_lists(plan.tokens, top_k, experts, plan.config.group, first_expert=first, device=DEVICE)
    for workspace in (plan.hidden, plan.each, plan.hidden_scale, plan.widened):
        if workspace is not None:
            workspace.view(torch.uint8).fill_(255)
    out = torch.full((tokens, d), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    lists.run(case["ids"])
    packed = api.PackedWeights(case["w13"], case["s13"], case["w2"], case["s2"])
    x, scale = (case["codes"], case["scale"]) if product.rounded else (case["x"], None)
    plan.run(x, scale, case["ids"], case["weights"], lists, packed, case["shared"]).add_up(out)
    return out.cpu()


def expected(case: dict[str, torch.Tensor], product: Product, *, first: int = 0) -> torch.Tensor:
    case = {name: value.cpu() for name, value in case.items()}
    (w1, w3), (s1, s3) = layout.separate(case["w13"]), layout.separate(case["s13"])
    experts = [mxfp4.dequantize(*pair) for pair in ((w1, s1), (w3, s3), (case["w2"], case["s2"]))]
    local = case["ids"] - first
    local = torch.where((local >= 0) & (local < len(w1)), local, -1).long()
    rounding = round_input if product.rounded else lambda x: x
    routed = reference.routed(case["x"], local, case["weights"], *experts, LIMIT, rounding)
    return (routed + case["shared"].float()).bfloat16()


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool(compare((left,), (right,), TIGHT))


@pytest.mark.parametrize("tokens", [1, 7, 67, 97])
def test_agrees_with_the_reference(tokens: int, product: Product) -> None:
    """Blocks of 32, 64 and 128 slots."""
    case = drawn(tokens, d=384 if tokens == 7 else 256, m=384 if tokens == 1 else 256)
    assert agree(found(case, product), expected(case, product))


def test_no_tokens(product: Product) -> None:
    assert found(drawn(0), product, planned=70).shape == (0, 256)


def test_rounding_is_what_tells_the_two_numerics_apart() -> None:
    case = drawn(9)
    assert agree(found(case, W4A16), expected(case, W4A16))
    assert not agree(found(case, W4A16), expected(case, W4A8))


def test_both_products_of_rounded_rows_agree() -> None:
    case = drawn(5)
    assert agree(expected(case, W4A8), found(case, W4A8_BF16))


@pytest.mark.parametrize("m", [256, 384, 1024, 1152])
def test_the_hidden_vector_is_rounded_in_place_bit_for_bit(m: int) -> None:
    """Of widths that a program holds in part, whole and with more behind; a row nobody lists spoils none beside it."""
    from wellhead.ops.moe import prefill_kernels as kernels

    h = torch.randn(7, m, generator=torch.Generator().manual_seed(m)).mul_(3).bfloat16()
    h[0], h[1, :128], h[2] = 0.0, 2.0**100, h[2] * 2.0**-30
    h[3] *= torch.exp2(torch.arange(m) % 41 - 30.0).bfloat16()  # codes from zero through denormals to the largest
    stale = [4, 6]
    h[stale[0]], h[stale[1]] = torch.nan, torch.inf
    out, groups = h.to(DEVICE), prefill_api.GROUPS
    kernels.round_hidden_kernel[(len(h), -(-m // (128 * groups)))](out, m, GROUPS=groups, num_warps=4)
    listed = [row for row in range(len(h)) if row not in stale]
    exact = block_fp8.round_rows(h[listed])
    assert torch.equal(out.cpu()[listed].view(torch.int16), exact.view(torch.int16))


def test_missing_ids_add_nothing_even_where_expert_0_is_nan(product: Product) -> None:
    case = drawn(8)
    case["ids"][case["ids"] == 0] = -1
    case["ids"][1] = -1  # a row without experts
    case["s13"][0], case["s2"][0] = 255, 255
    result = found(case, product)
    assert bool(result.isfinite().all())
    assert torch.equal(result[1], case["shared"][1].cpu())
    case["s13"][0], case["s2"][0] = 120, 120  # the reference may not read NaN either way
    assert agree(result, expected(case, product))


def test_another_ranks_experts_add_nothing(product: Product) -> None:
    case = drawn(5)
    case["ids"] += 2  # this rank holds experts 3 to 5 of 6
    assert agree(found(case, product, first=3), expected(case, product, first=3))


def test_a_row_does_not_depend_on_its_neighbours(product: Product) -> None:
    case = drawn(6)
    whole = found(case, product, planned=6)
    rows = ("x", "codes", "scale", "ids", "weights", "shared")
    alone = {name: value[2:3].clone() if name in rows else value for name, value in case.items()}
    assert torch.equal(found(alone, product, planned=6)[0], whole[2])


@pytest.mark.parametrize("byte", [30, 60, 200])
def test_extreme_scales_are_exact(byte: int) -> None:
    """Widening to bf16 goes through 2^-126 and scales are taken as they are: nothing may be flushed or overflow."""
    case = drawn(3)
    case["s13"].fill_(3), case["x"].mul_(2.0**120), case["shared"].zero_(), case["s2"].fill_(byte)
    size = 2.0 ** (123 - byte)  # of what comes out
    left, right = (value.float() * size for value in (found(case, W4A16), expected(case, W4A16)))
    assert float(right.abs().mean()) > 0.1 and agree(left, right)


@pytest.mark.parametrize("name", ["triton", "triton-w4a16"])
def test_an_implementation_agrees_with_its_reference(name: str) -> None:
    inputs, impl = drawn(66), SPEC.impl(name)
    assert impl.prepare is not None
    assert compare(results(impl.prepare(inputs)), results((impl.reference or prepare_reference)(inputs)), SPEC.error)


def test_unsupported_is_named() -> None:
    with pytest.raises(ValueError, match=r"m=192: a multiple of 128 from 256 on"):
        prefill_api.plan_prefill(80, 256, 192, 4, 2, LIMIT, W4A8, device=DEVICE)
    with pytest.raises(ValueError, match=r"tokens=-1"):
        prefill_api.plan_prefill(-1, 256, 256, 4, 2, LIMIT, W4A8, device=DEVICE)
    case = drawn(2)
    with pytest.raises(ValueError, match=r"w2 is torch.int8 .* expected contiguous torch.uint8"):
        found({**case, "w2": case["w2"].view(torch.int8)}, W4A8_BF16)
    with pytest.raises(ValueError, match=r"x is torch.bfloat16 .* expected contiguous torch.float8_e4m3fn"):
        found({**case, "codes": case["x"]}, W4A8_BF16)
