"""MXFP4 experts against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.formats import mxfp4
from wellhead.ops.linear.reference import round_input
from wellhead.ops.moe import api, layout, reference
from wellhead.ops.moe.spec import TIGHT, make
from wellhead.ops.routing.api import plan_lists

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = 1.0  # low enough to bite


def drawn(tokens: int, d: int = 256, m: int = 256, experts: int = 5, top_k: int = 2) -> dict[str, torch.Tensor]:
    return make(tokens, d, m, experts, top_k, torch.Generator().manual_seed(tokens), DEVICE)


def found(case: dict[str, torch.Tensor], *, first: int = 0, planned: int | None = None) -> torch.Tensor:
    tokens, d = case["x"].shape
    top_k, (experts, d_out, _) = case["ids"].shape[1], case["w2"].shape
    m = case["w13"].shape[1] // 2
    plan = api.plan(planned or max(tokens, 1), d, m, experts, top_k, LIMIT, device=DEVICE)
    lists = plan_lists(plan.tokens, top_k, experts, plan.config.group, first_expert=first, device=DEVICE)
    for workspace in (plan.hidden, plan.each):
        workspace.fill_(torch.nan)
    out = torch.full((tokens, d_out), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    lists.run(case["ids"])
    packed = api.PackedWeights(case["w13"], case["s13"], case["w2"], case["s2"])
    plan.run(case["halves"], case["scale"], case["ids"], case["weights"], lists, packed, case["shared"]).add_up(out)
    return out.cpu()


def expected(case: dict[str, torch.Tensor], *, first: int = 0) -> torch.Tensor:
    case = {name: value.cpu() for name, value in case.items()}
    (w1, w3), (s1, s3) = layout.separate(case["w13"]), layout.separate(case["s13"])
    experts = [mxfp4.dequantize(*pair) for pair in ((w1, s1), (w3, s3), (case["w2"], case["s2"]))]
    local = case["ids"] - first
    local = torch.where((local >= 0) & (local < len(w1)), local, -1).long()
    routed = reference.routed(case["x"], local, case["weights"], *experts, LIMIT, round_input)
    return (routed + case["shared"].float()).bfloat16()


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    bound = TIGHT.absolute + TIGHT.relative * right.float().abs()
    return bool(((left.float() - right.float()).abs() <= bound).all())


@pytest.mark.parametrize("tokens", [0, 1, 3, 9])
def test_agrees_with_the_reference(tokens: int) -> None:
    case = drawn(tokens, d=512 if tokens == 3 else 256)
    assert agree(found(case), expected(case))


@pytest.mark.parametrize("warp_groups", [False, True])
@pytest.mark.parametrize(("d", "m"), [(1024, 512), (512, 256)])
def test_tiles_of_either_kind_of_product(d: int, m: int, warp_groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen blocks a step where the card has warp groups and a row is long enough, eight elsewhere."""
    monkeypatch.setattr(api.card, "has", lambda feature: feature == "wgmma" and warp_groups)
    config = api.choose_config(1, 2, 5, d, m, warp_groups)
    assert (config.inputs, config.down_inputs) == ((512, 512 if m == 512 else 256) if warp_groups else (256, 256))
    case = drawn(1, d=d, m=m)
    assert agree(found(case), expected(case))


@pytest.mark.parametrize(("d", "m"), [(512, 256), (256, 384)])
def test_many_tokens_streamed_by_warp_groups(d: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 256 inputs, or 128 where 256 does not divide a row."""
    monkeypatch.setattr(api.card, "has", lambda feature: feature == "wgmma")
    case = drawn(67, d=d, m=m, experts=3)
    config = api.choose_config(67, 2, 3, d, m, True)
    assert (config.group, config.inputs, config.down_inputs) == (8, 256, 256 if m == 256 else 128)
    assert agree(found(case), expected(case))


@pytest.mark.parametrize("tokens", [1, 3])
def test_widths_that_only_128_divides(tokens: int) -> None:
    """V4-Pro's experts over eight ranks: four blocks of a row a step, two tokens to a group."""
    case = drawn(tokens, d=256, m=384)
    assert agree(found(case), expected(case))


def test_missing_ids_add_nothing_even_where_expert_0_is_nan() -> None:
    case = drawn(4)
    case["ids"][case["ids"] == 0] = -1
    case["ids"][1] = -1  # a row without experts
    case["s13"][0], case["s2"][0] = 255, 255
    result = found(case)
    assert bool(result.isfinite().all())
    assert torch.equal(result[1], case["shared"][1].cpu())
    case["s13"][0], case["s2"][0] = 120, 120  # the reference may not read NaN either way
    assert agree(result, expected(case))


def test_another_ranks_experts_add_nothing() -> None:
    case = drawn(5)
    case["ids"] += 3  # this rank holds experts 5 to 9 of 10
    assert agree(found(case, first=5), expected(case, first=5))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    case = drawn(6)
    whole = found(case, planned=6)
    rows = ("x", "halves", "scale", "ids", "weights", "shared")
    alone = {name: value[2:3].clone() if name in rows else value for name, value in case.items()}
    assert torch.equal(found(alone, planned=6)[0], whole[2])


def test_interleaving_has_an_inverse() -> None:
    w1, w3 = torch.randn(2, 3, 6, 4).unbind(0)
    for left, right in ((w1, w3), (w1[:, ::2], w3[:, ::2]), (w1[:0], w3[:0])):
        back = layout.separate(layout.interleave(left, right))
        assert torch.equal(back[0], left) and torch.equal(back[1], right)


def test_unsupported_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"m=128: a multiple of 128 from 256 on"):
        api.plan(1, 256, 128, 4, 2, 10.0, device=DEVICE)
    case = drawn(2)
    with pytest.raises(ValueError, match=r"w2 is torch.int8 .* expected contiguous torch.uint8"):
        found({**case, "w2": case["w2"].view(torch.int8)})
