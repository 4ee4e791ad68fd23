"""Output projection against its reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wellhead.formats import block_fp8
from wellhead.ops.output_projection import api, reference
from wellhead.ops.output_projection.configs import Config, choose_config
from wellhead.ops.output_projection.spec import SPEC, make, prepare, prepare_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Case = dict[str, Any]


def drawn(tokens: int, heads: int, groups: int, n: int) -> Case:
    return make(tokens, heads, groups, n, torch.Generator().manual_seed(tokens + heads), DEVICE)


def expected(case: Case) -> torch.Tensor:
    weight = block_fp8.dequantize_weight(case["weight"].cpu(), case["scale"].cpu()).unflatten(0, (case["groups"], -1))
    return reference.project(case["o"].cpu(), weight).flatten(1)


def run(case: Case, rounds: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    (tokens, heads, _), width = case["o"].shape, case["weight"].shape[0]
    plan = api.plan(heads, case["groups"], width // case["groups"])
    z = torch.full((tokens, width), torch.nan, device=DEVICE).to(torch.float8_e4m3fn if rounds else torch.bfloat16)
    z_scale = torch.full((tokens, width // 128), 255, dtype=torch.uint8, device=DEVICE) if rounds else None
    plan.run(case["o"], case["weight"], case["scale"], z, z_scale)
    return z.cpu(), None if z_scale is None else z_scale.cpu()


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    bound = SPEC.error.absolute + SPEC.error.relative * right.float().abs()
    return bool(((left.float() - right.float()).abs() <= bound).all())


@pytest.mark.parametrize(("heads", "groups", "n"), [(16, 2, 128), (4, 2, 384), (3, 3, 256), (8, 2, 128)])
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 5, 17, 33, 64, 65, 130])
def test_agrees_with_the_reference(tokens: int, heads: int, groups: int, n: int) -> None:
    case = drawn(tokens, heads, groups, n)
    assert agree(run(case)[0], expected(case))


@pytest.mark.parametrize(
    ("tokens", "config"),
    [
        (2, Config(True, 2, 8, 8, 1)),
        (1, Config(True, 1, 16, 8, 1)),
        (130, Config(False, 128, 128, 8, 3)),
    ],
)
def test_other_tiles_agree_too(monkeypatch: pytest.MonkeyPatch, tokens: int, config: Config) -> None:
    monkeypatch.setattr(api, "choose_config", lambda tokens: config)
    case = drawn(tokens, 16, 2, 256)
    assert agree(run(case)[0], expected(case))


@pytest.mark.parametrize("config", [Config(False, 64, 128, 8, 4), Config(False, 128, 128, 8, 3)])
def test_rounded_outputs_are_the_bf16_outputs_rounded(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    monkeypatch.setattr(api, "choose_config", lambda tokens: config)
    case = drawn(260, 4, 2, 256)
    case["scale"][1] += 9  # a block far larger than the others
    case["o"][7] = 0
    codes, scale = block_fp8.quantize_rows(run(case)[0])
    found, found_scale = run(case, rounds=True)
    assert found_scale is not None and torch.equal(found_scale, scale)
    assert torch.equal(found.view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("tokens", [2, 16, 40, 70])
def test_a_row_does_not_depend_on_its_neighbours(tokens: int) -> None:
    case = drawn(tokens, 8, 2, 128)
    whole = run(case)[0]
    case["o"][1:] = torch.nan
    assert torch.equal(run(case)[0][0], whole[0])
    if tokens > 2:
        fewer = tokens - 1 if tokens != 16 else 9
        few = {**case, "o": case["o"][:fewer].contiguous()}
        assert choose_config(fewer) == choose_config(tokens)
        assert torch.equal(run(few)[0][0], whole[0])


def test_scales_at_the_ends_of_their_range() -> None:
    """Byte 254 (2^127) meets inputs of size 2^-118; byte 0 stands for at most 2^-127, which no sum here can see."""
    for tokens in (1, 4, 66):
        case = drawn(tokens, 2, 1, 256)
        case["scale"].copy_(torch.tensor([[119, 0, 254, 119] * 2, [0] * 8], dtype=torch.uint8))
        case["o"][..., 256:384] *= 2.0**-118
        found = run(case)[0]
        weight = case["weight"].cpu().double().unflatten(1, (-1, 128))
        power = torch.exp2(case["scale"].cpu().double() - 127).repeat_interleave(128, 0)
        weight = (weight * power[..., None]).flatten(1)
        exact = case["o"].cpu().double().flatten(1) @ weight.T
        assert bool((exact[:, :128].abs().amax(1) > 1).all())
        size = case["o"].cpu().double().flatten(1).abs() @ weight.abs().T
        bound = 2.0**-7 * exact.abs() + 2.0**-10 * size + 2.0**-90
        assert bool(((found.double() - exact).abs() <= bound).all())


def test_prepared_cases_agree() -> None:
    for tokens in (1, 3, 70):
        case = drawn(tokens, 4, 2, 128)
        assert agree(prepare(case)().cpu(), prepare_reference(case)().cpu())


def test_what_is_refused() -> None:
    for arguments, reason in (
        ((64, 4, 1024), "heads=64 in groups=4: 1, 2, 4 or 8 heads a group"),
        ((6, 4, 128), "heads=6 in groups=4"),
        ((12, 4, 128), "heads=12 in groups=4"),
        ((8, 1, 200), "n=200: a multiple of 128"),
    ):
        with pytest.raises(ValueError, match=reason):
            api.plan(*arguments)
    few = drawn(3, 4, 2, 128)
    z = torch.empty(3, 256, dtype=torch.bfloat16, device=DEVICE)
    codes, scale = torch.empty_like(z).to(torch.float8_e4m3fn), torch.empty(3, 2, dtype=torch.uint8, device=DEVICE)
    for given, reason in (
        ((few["o"], few["weight"], few["scale"], codes, scale), "3 tokens, z with a scale"),
        ((few["o"].float(), few["weight"], few["scale"], z), "o is torch.float32"),
        ((few["o"], few["weight"], few["scale"][:1], z), r"scale is torch.uint8 \(1, 8\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            api.plan(4, 2, 128).run(*given)
