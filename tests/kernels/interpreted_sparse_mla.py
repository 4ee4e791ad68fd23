"""Sparse decode against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from wellhead.formats import kv_record
from wellhead.ops.rope import reference as rope
from wellhead.ops.sparse_mla import api, reference
from wellhead.ops.sparse_mla.configs import Config
from wellhead.ops.sparse_mla.spec import SPEC

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 512**-0.5


def drawn(tokens: int, heads: int, window: int, selected: int, seed: int = 0, page: int = 64) -> dict[str, Any]:
    """Hostile on purpose: page 0 of both pools is NaN and never named, a fifth of the slots are -1."""
    generator = torch.Generator().manual_seed(seed)

    def pool(width: int, size: int) -> api.Pool:
        pages = 2 + -(-2 * width // size)
        cache = kv_record.allocate_pages(pages, size)
        kv_record.write(
            cache, torch.arange(pages * size), torch.randn(pages * size, 512, generator=generator).bfloat16()
        )
        cache[0] = 255
        slots = torch.randint(size, pages * size, (tokens, width), generator=generator)
        slots[torch.rand(tokens, width, generator=generator) < 0.2] = -1
        length = torch.randint(0, width + 1, (tokens,), generator=generator).int()
        return api.Pool(cache.to(DEVICE), size, slots.to(DEVICE), length.to(DEVICE))

    return {
        "q": (torch.randn(tokens, heads, 512, generator=generator) * 2).bfloat16().to(DEVICE),
        "sink": torch.randn(heads, generator=generator).to(DEVICE),
        "window": pool(window, 256),
        "selected": pool(selected, page),
    }


def found(case: dict[str, Any], splits: int, *turn: torch.Tensor) -> torch.Tensor:
    tokens, heads, _ = case["q"].shape
    plan = api.plan(max(tokens, 1), heads, 64, SCALE, device=DEVICE)
    config = Config(heads=16, splits=splits, records=16, num_warps=4, num_stages=1, keys_first=True)
    shape = (max(tokens, 1), splits, heads)
    plan = replace(
        plan, config=config, part=torch.full((*shape, 512), torch.nan, device=DEVICE),
        part_stat=torch.full((*shape, 2), torch.nan, device=DEVICE),
    )  # fmt: skip
    out = torch.full_like(case["q"], torch.nan)
    plan.run(case["q"], case["window"], case["selected"], case["sink"], out, *turn)
    return out.cpu()


def expected(case: dict[str, Any]) -> torch.Tensor:
    pools = []
    for name in ("window", "selected"):
        pool = case[name]
        slots = pool.slots.cpu().long()
        inside = torch.arange(slots.shape[1]) < pool.length.cpu()[:, None]
        pools.append((pool.cache.cpu().view(torch.uint8), torch.where(inside, slots, -1)))
    return reference.attend_paged(case["q"].cpu(), pools, case["sink"].cpu(), SCALE)


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    bound = SPEC.error.absolute + SPEC.error.relative * right.float().abs()
    return bool(((left.float() - right.float()).abs() <= bound).all())


def test_heads_are_turned_back_on_the_way_out_where_parts_are_merged() -> None:
    """As ops.rope turns attention's result: angles up to a million positions."""
    case, freqs = drawn(3, 20, 70, 100), rope.frequencies(64, 10000.0, None)
    positions = torch.tensor([0, 12345, (1 << 20) - 1])
    turned = found(case, 4, positions.to(DEVICE), freqs.to(DEVICE)).float()
    straight = rope.apply(found(case, 4), positions, freqs, inverse=True).float()
    assert torch.equal(turned[..., :448], straight[..., :448])
    assert bool(((turned - straight).abs() <= 2.0**-7 * straight.abs() + 2.0**-20).all())
    assert float((turned == straight).float().mean()) > 0.999
    for splits, turn in ((1, (positions.to(DEVICE), freqs.to(DEVICE))), (4, (positions.to(DEVICE),))):
        with pytest.raises(ValueError, match="expected both, of a plan that turns, or neither"):
            found(case, splits, *turn)


@pytest.mark.parametrize(("tokens", "heads", "splits"), [(0, 16, 1), (1, 16, 1), (3, 20, 1), (2, 16, 4), (2, 20, 8)])
def test_agrees_with_the_reference(tokens: int, heads: int, splits: int) -> None:
    case = drawn(tokens, heads, 70, 100, seed=splits)
    assert agree(found(case, splits), expected(case))


def test_pages_of_two_records() -> None:
    case = drawn(2, 16, 40, 50, page=2)
    assert agree(found(case, 2), expected(case))


@pytest.mark.parametrize("splits", [1, 4])
def test_a_token_without_records_gives_zero(splits: int) -> None:
    """Also under a sink whose exponential is no fp32 number."""
    case = drawn(3, 16, 40, 40)
    case["sink"][::2] = -110
    case["window"].slots[0] = -1
    case["selected"].length[0] = 0
    case["window"].length[1], case["selected"].length[1] = 0, 0
    result = found(case, splits)
    assert bool((result[:2] == 0).all()) and bool(result.isfinite().all())


def test_both_cache_dtypes_and_slot_widths_give_the_same_bits() -> None:
    case = drawn(2, 16, 40, 40)
    whole = found(case, 2)
    for dtype in (torch.float8_e4m3fn, torch.int8):
        other = {
            name: replace(case[name], cache=case[name].cache.view(dtype), slots=case[name].slots.int())
            for name in ("window", "selected")
        }
        assert torch.equal(found({**case, **other}, 2), whole)


def test_wrong_pools_are_named() -> None:
    case = drawn(1, 16, 40, 40)
    with pytest.raises(ValueError, match=r"selected.cache is .* \[pages, 74880\] \(128 packed records\)"):
        found({**case, "selected": replace(case["selected"], page_size=128)}, 1)
    with pytest.raises(ValueError, match=r"heads=200: 1 to 128"):
        api.plan(1, 200, 64, SCALE, device=DEVICE)
