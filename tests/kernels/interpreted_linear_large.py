"""The block-FP8 product for many tokens against the reference. Run by test_interpreter.py, or natively on a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.formats import block_fp8
from wellhead.ops.linear import api, reference
from wellhead.ops.linear.large_configs import SMALL_TOKENS, LargeConfig, choose_large
from wellhead.ops.linear.spec import SPEC, make

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGE, SMALL = LargeConfig(128, 128, 8, 8, 4), LargeConfig(64, 64, 16, 4, 4)
NARROW_GROUPS = LargeConfig(64, 64, 2, 4, 4)

Case = dict[str, torch.Tensor]


def drawn(tokens: int, n: int, k: int) -> Case:
    return make(tokens, n, k, torch.Generator().manual_seed(tokens + n), DEVICE)


def found(case: Case) -> torch.Tensor:
    n, k = case["weight"].shape
    out = torch.full((case["codes"].shape[0], n), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    api.plan(n, k).run(case["codes"], case["x_scale"], case["weight"], case["scale"], out)
    return out.cpu()


def expected(case: Case) -> torch.Tensor:
    """The reference over both sides dequantised exactly."""
    x = block_fp8.dequantize_rows(case["codes"].cpu(), case["x_scale"].cpu())
    weight = block_fp8.dequantize_weight(case["weight"].cpu(), case["scale"].cpu())
    return reference.linear(x, weight).to(torch.bfloat16)


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    bound = SPEC.error.absolute + SPEC.error.relative * right.float().abs()
    return bool(((left.float() - right.float()).abs() <= bound).all())


@pytest.mark.parametrize("config", [LARGE, SMALL, NARROW_GROUPS])
@pytest.mark.parametrize(("tokens", "n", "k"), [(65, 130, 256), (130, 200, 384), (300, 264, 128), (128, 256, 512)])
def test_agrees_with_the_reference(
    monkeypatch: pytest.MonkeyPatch, config: LargeConfig, tokens: int, n: int, k: int
) -> None:
    monkeypatch.setattr(api, "choose_large", lambda tokens, n: config)
    case = drawn(tokens, n, k)
    assert agree(found(case), expected(case))


def test_what_was_chosen_agrees_too() -> None:
    assert choose_large(65, 16384) == LARGE and choose_large(65, 1536) == SMALL
    for n in (16384, 128):
        case = drawn(65, n, 128)
        assert agree(found(case), expected(case))


def test_the_tile_depends_on_the_power_of_two_alone() -> None:
    for n in (1536, 4096, 32768):
        for low, high in ((65, 128), (129, 256), (2049, 4096)):
            assert choose_large(low, n) == choose_large(high, n)


@pytest.mark.parametrize("config", [LARGE, SMALL])
def test_a_row_does_not_depend_on_its_neighbours(monkeypatch: pytest.MonkeyPatch, config: LargeConfig) -> None:
    monkeypatch.setattr(api, "choose_large", lambda tokens, n: config)
    case = drawn(130, 136, 256)
    whole = found(case)
    kept = torch.tensor([0, 63, 64, 129])
    hostile = torch.full_like(case["codes"].view(torch.uint8), 0x7F)  # NaN
    hostile[kept.to(DEVICE)] = case["codes"].view(torch.uint8)[kept.to(DEVICE)]
    case["codes"] = hostile.view(torch.float8_e4m3fn)
    case["x_scale"][1:63] = 200
    assert torch.equal(found(case)[kept], whole[kept])


def test_more_rows_in_the_same_configuration_keep_a_rows_bits() -> None:
    case = drawn(256, 130, 256)
    whole = found(case)
    case["codes"], case["x_scale"] = case["codes"][:129], case["x_scale"][:129]
    assert torch.equal(found(case), whole[:129])


def test_scales_at_the_ends_of_their_range() -> None:
    """Byte 254 (2^127) meets byte 1; byte 0 stands for at most 2^-127, which no sum here can see."""
    case = drawn(70, 130, 384)
    case["scale"].copy_(torch.tensor([[1, 254, 119], [2, 1, 0]], dtype=torch.uint8))
    case["x_scale"][:7, 0], case["x_scale"][7:, 0], case["x_scale"][:, 1] = 254, 0, 1
    x_scale, scale = (torch.exp2(case[name].cpu().double() - 127) for name in ("x_scale", "scale"))
    x = case["codes"].cpu().double() * x_scale.repeat_interleave(128, 1)
    weight = case["weight"].cpu().double() * scale.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)
    exact, size = x @ weight.T, x.abs() @ weight.abs().T
    assert bool((exact.abs().amax(1) > 100).all()) and bool((exact[7:, 128:].abs() < 2.0**-90).all())
    bound = SPEC.error.relative * exact.abs() + 2.0**-12 * size + 2.0**-90  # 13 bits kept of a sum: see SPEC
    assert bool(((found(case).double() - exact).abs() <= bound).all())


def test_unrounded_rows_beyond_the_few_take_the_kernel_for_few() -> None:
    case = drawn(SMALL_TOKENS + 1, 72, 256)
    out = torch.full((SMALL_TOKENS + 1, 72), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    api.plan(72, 256).run(case["x"], None, case["weight"], case["scale"], out)
    assert agree(out.cpu(), expected(case))
