"""Sparse prefill against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.interpreted_sparse_mla import DEVICE, SCALE, agree, drawn, expected
from wellhead.dispatch.spec import REFERENCE
from wellhead.formats import kv_record
from wellhead.ops.sparse_mla import api, reference, spec
from wellhead.ops.sparse_mla.configs import Config, choose_config
from wellhead.ops.sparse_mla.spec import SPEC, make

CONFIGS = (Config(16, 1, 16, 4, 1, True), Config(64, 1, 16, 4, 2, False))
MANY = 4096  # tokens that the plans are made for: no splits


def found(case: dict[str, Any], config: Config | None = None) -> torch.Tensor:
    plan = api.plan(MANY, case["q"].shape[1], 640, SCALE, device=DEVICE)
    out = torch.full_like(case["q"], torch.nan)
    plan = plan if config is None else replace(plan, config=config)
    plan.run(case["q"], case["window"], case["selected"], case["sink"], out)
    return out.cpu()


@pytest.mark.parametrize(("tokens", "heads"), [(0, 16), (1, 16), (3, 20), (2, 50)])
def test_agrees_with_the_reference(tokens: int, heads: int) -> None:
    case = drawn(tokens, heads, 70, 100, seed=tokens)
    assert agree(found(case), expected(case))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_form_of_the_tile_agrees_with_the_reference(config: Config) -> None:
    case = drawn(3, 24, 40, 70, page=2)
    assert agree(found(case, config), expected(case))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_token_without_records_gives_zero(config: Config) -> None:
    case = drawn(4, 16, 40, 40)
    case["window"].slots[0] = -1
    case["selected"].length[0] = 0
    case["window"].length[1], case["selected"].length[1] = 0, 0
    case["window"].slots[2], case["selected"].slots[2] = -1, -1
    result = found(case, config)
    assert bool((result[:3] == 0).all()) and bool(result.isfinite().all())


def test_records_of_one_pool_only() -> None:
    case = drawn(2, 16, 40, 40)
    case["window"].length[0], case["selected"].length[1] = 0, 0
    assert agree(found(case), expected(case)) and bool((found(case) != 0).any())


def test_both_cache_dtypes_and_slot_widths_give_the_same_bits() -> None:
    case = drawn(2, 16, 40, 40)
    whole = found(case)
    for dtype in (torch.float8_e4m3fn, torch.int8):
        other = {
            name: replace(case[name], cache=case[name].cache.view(dtype), slots=case[name].slots.int())
            for name in ("window", "selected")
        }
        assert torch.equal(found({**case, **other}), whole)


def test_other_tokens_and_heads_do_not_change_a_bit() -> None:
    case = drawn(3, 40, 40, 40)
    whole = found(case)
    for token in range(3):
        part = slice(token, token + 1)
        alone = {
            name: replace(case[name], slots=case[name].slots[part], length=case[name].length[part])
            for name in ("window", "selected")
        }
        assert torch.equal(found({**case, **alone, "q": case["q"][part]}), whole[part])
    fewer = {**case, "q": case["q"][:, :35].contiguous(), "sink": case["sink"][:35]}
    assert torch.equal(found(fewer), whole[:, :35])


def test_records_past_two_gigabytes() -> None:
    case = drawn(1, 16, 40, 40)
    selected = case["selected"]
    stride = selected.cache.shape[1]
    far = 2**31 // stride + 2
    cache = torch.empty(far + len(selected.cache), stride, dtype=torch.uint8, device=DEVICE)
    cache[far:] = selected.cache
    slots = torch.where(selected.slots >= 0, selected.slots + far * 64, -1)
    moved = replace(selected, cache=cache, slots=slots)
    assert torch.equal(found({**case, "selected": moved}), found(case))


def test_a_chunk_through_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared as the benchmark prepares it: more tokens than a decode batch has, here more than one."""
    monkeypatch.setattr(spec, "DECODED", 1)
    inputs = make(4, 16, 40, 64, torch.Generator(DEVICE).manual_seed(1), DEVICE)
    kernels, exact = SPEC.impl("triton").prepare, SPEC.impl(REFERENCE).prepare
    assert kernels is not None and exact is not None
    assert agree(kernels(inputs)().cpu(), exact(inputs)().cpu())


def test_the_reference_stays_on_the_device_of_its_inputs() -> None:
    """A tensor made without a device would land on "meta" here, and not mix with the others."""
    case = {name: x.cpu() for name, x in drawn(3, 8, 20, 20).items() if isinstance(x, torch.Tensor)}
    cache = kv_record.allocate_pages(2, 64)
    kv_record.write(cache, torch.arange(128), torch.randn(128, 512).bfloat16())
    for tokens in (1, 3):
        pools = [(cache, torch.randint(-1, 128, (tokens, 20))) for _ in range(2)]
        with torch.device("meta"):
            out = reference.attend_paged(case["q"][:tokens], pools, case["sink"], SCALE)
        assert out.device.type == "cpu" and bool(out.isfinite().all())


def test_configs_hold_every_number_of_heads() -> None:
    chosen = {heads: choose_config(MANY, heads, 640) for heads in (1, 16, 17, 32, 33, 64, 128)}
    assert {heads: config.heads for heads, config in chosen.items()} == {
        1: 16, 16: 16, 17: 32, 32: 32, 33: 32, 64: 32, 128: 32
    }  # fmt: skip
    assert {config.splits for config in chosen.values()} == {1}


def test_wrong_pools_are_named() -> None:
    case = drawn(1, 16, 40, 40)
    with pytest.raises(ValueError, match=r"selected.cache is .* \[pages, 74880\] \(128 packed records\)"):
        found({**case, "selected": replace(case["selected"], page_size=128)})
    narrow = torch.zeros(5, 37448, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(ValueError, match=r"selected.cache: pages are 37448 bytes apart .* expected a multiple of 16"):
        found({**case, "selected": replace(case["selected"], cache=narrow)})
    with pytest.raises(ValueError, match=r"heads=200: 1 to 128"):
        api.plan(MANY, 200, 640, SCALE, device=DEVICE)
