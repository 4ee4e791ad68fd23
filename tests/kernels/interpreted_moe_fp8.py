"""Block-FP8 experts against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.formats import ue8m0
from wellhead.ops.linear.reference import round_input
from wellhead.ops.moe import fp8_api, layout, reference
from wellhead.ops.moe.fp8_spec import make
from wellhead.ops.moe.packed import PackedWeights
from wellhead.ops.moe.spec import SPEC, prepare_reference
from wellhead.ops.routing.api import plan_lists
from wellhead.testing.agreement import compare, results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = 1.0  # low enough to bite


def drawn(tokens: int, d: int = 256, m: int = 256, experts: int = 3, top_k: int = 2) -> dict[str, torch.Tensor]:
    return make(tokens, d, m, experts, top_k, torch.Generator().manual_seed(tokens), DEVICE)


def found(case: dict[str, torch.Tensor], *, first: int = 0, planned: int | None = None) -> torch.Tensor:
    """What the kernels compute; every workspace starts as NaN."""
    (tokens, d), (experts, _, _), top_k = case["x"].shape, case["w2"].shape, case["ids"].shape[1]
    m = case["w13"].shape[1] // 2
    plan = fp8_api.plan(planned or tokens, d, m, experts, top_k, LIMIT, device=DEVICE)
    lists = plan_lists(plan.tokens, top_k, experts, plan.config.group, first_expert=first, device=DEVICE)
    for workspace in (plan.hidden, plan.each, plan.hidden_scale):
        if workspace is not None:
            workspace.view(torch.uint8).fill_(255)
    out = torch.full((tokens, d), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    lists.run(case["ids"])
    packed = PackedWeights(case["w13"], case["s13"], case["w2"], case["s2"])
    plan.run(case["codes"], case["scale"], case["ids"], case["weights"], lists, packed, case["shared"]).add_up(out)
    return out.cpu()


def expected(case: dict[str, torch.Tensor], *, first: int = 0) -> torch.Tensor:
    case = {name: value.cpu() for name, value in case.items()}
    (w1, w3), (s1, s3) = layout.separate(case["w13"]), layout.separate(case["s13"])
    experts = [reference.PackedExperts(*pair) for pair in ((w1, s1), (w3, s3), (case["w2"], case["s2"]))]
    local = case["ids"] - first
    local = torch.where((local >= 0) & (local < len(w1)), local, -1).long()
    routed = reference.routed(case["x"], local, case["weights"], *experts, LIMIT, round_input)
    return (routed + case["shared"].float()).bfloat16()


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool(compare((left,), (right,), SPEC.error))


# planned for 1, 3, 17: blocks of 16; for 67: blocks of 64
@pytest.mark.parametrize("tokens", [1, 3, 17, 67])
def test_agrees_with_the_reference(tokens: int) -> None:
    case = drawn(tokens, d=384 if tokens == 3 else 256, m=384 if tokens == 1 else 256)
    assert agree(found(case), expected(case))


@pytest.mark.parametrize("planned", [2, 90])
def test_scales_may_be_fp32(planned: int) -> None:
    case = drawn(2)
    for name in ("s13", "s2"):
        case[name] = ue8m0.decode(case[name]) * 1.37
    assert agree(found(case, planned=planned), expected(case))


@pytest.mark.parametrize("planned", [1, 90])
def test_no_tokens(planned: int) -> None:
    assert found(drawn(0), planned=planned).shape == (0, 256)


@pytest.mark.parametrize("planned", [4, 90])
def test_missing_ids_add_nothing_even_where_expert_0_is_nan(planned: int) -> None:
    case = drawn(4)
    case["ids"][case["ids"] == 0] = -1
    case["ids"][1] = -1  # a row without experts
    clean = {name: case[name].clone() for name in ("w13", "w2")}
    for name in clean:
        case[name].view(torch.uint8)[0] = 127
    result = found(case, planned=planned)
    assert bool(result.isfinite().all())
    assert torch.equal(result[1], case["shared"][1].cpu())
    assert agree(result, expected({**case, **clean}))


@pytest.mark.parametrize("planned", [5, 90])
def test_another_ranks_experts_add_nothing(planned: int) -> None:
    case = drawn(5)
    case["ids"] += 2  # this rank holds experts 3 to 5 of 6
    assert agree(found(case, first=3, planned=planned), expected(case, first=3))


@pytest.mark.parametrize("planned", [6, 90])
def test_a_row_does_not_depend_on_its_neighbours(planned: int) -> None:
    case = drawn(6)
    whole = found(case, planned=planned)
    rows = ("x", "codes", "scale", "ids", "weights", "shared")
    alone = {name: value[2:3].clone() if name in rows else value for name, value in case.items()}
    assert torch.equal(found(alone, planned=planned)[0], whole[2])


def test_the_planned_number_of_tokens_chooses() -> None:
    few, many = (fp8_api.plan(t, 256, 256, 4, 2, LIMIT, device=DEVICE) for t in (24, 25))
    assert (few.config.group, few.hidden.dtype) == (16, torch.bfloat16)
    assert (many.config.group, many.hidden.dtype) == (64, torch.float8_e4m3fn)


def test_the_implementation_agrees_with_the_reference() -> None:
    inputs, impl = drawn(4), SPEC.impl("triton")
    assert impl.prepare is not None
    assert compare(results(impl.prepare(inputs)), results(prepare_reference(inputs)), SPEC.error)


def test_unsupported_is_named() -> None:
    with pytest.raises(ValueError, match=r"d=320: a multiple of 128 from 256 on"):
        fp8_api.plan(1, 320, 256, 4, 2, LIMIT, device=DEVICE)
    with pytest.raises(ValueError, match=r"below 2\^38 / 4096 slots"):
        fp8_api.plan(1 << 24, 4096, 2048, 256, 6, LIMIT, device=DEVICE)
    case = drawn(2)
    with pytest.raises(ValueError, match=r"w2 is torch.int8 .* expected contiguous torch.float8_e4m3fn"):
        found({**case, "w2": case["w2"].view(torch.int8)})
    with pytest.raises(ValueError, match=r"s2 is torch.uint8 .* expected contiguous torch.float32"):
        found({**case, "s13": ue8m0.decode(case["s13"])})
