"""Block-FP8 products against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.formats import block_fp8
from wellhead.ops.linear import api, reference
from wellhead.ops.linear.spec import SPEC, make

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def drawn(tokens: int, n: int, k: int) -> dict[str, torch.Tensor]:
    return make(tokens, n, k, torch.Generator().manual_seed(tokens + n), DEVICE)


def found(case: dict[str, torch.Tensor], rounds: bool) -> torch.Tensor:
    n, k = case["weight"].shape
    out = torch.full((case["x"].shape[0], n), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    x, scale = (case["x"], None) if rounds else (case["codes"], case["x_scale"])
    api.plan(n, k).run(x, scale, case["weight"], case["scale"], out)
    return out.cpu()


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize(
    ("tokens", "n", "k"),
    [(0, 130, 256), (1, 200, 384), (2, 128, 1024), (3, 136, 512), (5, 130, 256), (17, 64, 128), (70, 150, 256)],
)
def test_agrees_with_the_reference(tokens: int, n: int, k: int, rounds: bool) -> None:
    case = drawn(tokens, n, k)
    dequantised = block_fp8.dequantize_weight(case["weight"].cpu(), case["scale"].cpu())
    expected = reference.linear(reference.round_input(case["x"].cpu()), dequantised)
    bound = SPEC.error.absolute + SPEC.error.relative * expected.float().abs()
    assert bool(((found(case, rounds).float() - expected.float()).abs() <= bound).all())


def test_rounding_on_the_way_in_gives_the_same_bits() -> None:
    for tokens in (1, 4, 9):
        case = drawn(tokens, 96, 512)
        assert torch.equal(found(case, True), found(case, False))


def test_a_row_does_not_depend_on_its_neighbours_within_a_power_of_two() -> None:
    case = drawn(8, 96, 256)
    whole = found(case, False)
    case["codes"][1:] = torch.full_like(case["codes"][1:].view(torch.uint8), 0x7F).view(torch.float8_e4m3fn)  # NaN
    assert torch.equal(found(case, False)[0], whole[0])


def test_unsupported_sizes_and_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"k=200: a multiple of 128"):
        api.plan(64, 200)
    rows = (1 << 23) + 1
    many, out = (torch.empty(rows, width, dtype=torch.bfloat16, device="meta") for width in (256, 128))
    case = drawn(1, 128, 256)
    with pytest.raises(ValueError, match=r"x has 8388609 bf16 rows of 256: below 2\^31 elements"):
        api.plan(128, 256).run(many, None, case["weight"], case["scale"], out)
    with pytest.raises(ValueError, match=r"weight is torch.uint8 .* expected contiguous torch.float8_e4m3fn"):
        api.plan(128, 256).run(
            case["codes"], case["x_scale"], case["weight"].view(torch.uint8), case["scale"], torch.empty(0)
        )
