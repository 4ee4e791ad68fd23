"""Queries and records of a step against the reference. Run by test_interpreter.py, or natively on a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wellhead.formats import kv_record
from wellhead.ops.kv_store import api
from wellhead.ops.kv_store.spec import SPEC, make
from wellhead.ops.norm_quant.reference import rms_norm
from wellhead.ops.rope import reference as rope

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


def drawn(tokens: int, heads: int, page: int = 64, seed: int = 0) -> dict[str, Any]:
    """The last position is the end of a million tokens; the cache is full of NaN; every third token has no slot."""
    case = make(tokens, heads, page, torch.Generator().manual_seed(seed), DEVICE)
    case["positions"][-1:] = (1 << 20) - 1
    case["cache"].fill_(255)
    case["slots"][1::3] = -1
    return case


def run(case: dict[str, Any], **change: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(q_out, kv_out, cache bytes) of one run over copies."""
    given = {**case, **change}
    q, page = given["q"], kv_record.LAYOUT.page_size(given["cache"])
    cache = given["cache"].clone()
    q_out = torch.full_like(q, torch.nan)
    kv_out = torch.full(given["kv"].shape, torch.nan, dtype=torch.bfloat16, device=DEVICE)
    plan = api.plan(q.shape[1], page, EPS)
    rest = (given["slots"], given["positions"], given["freqs"])
    plan.run(q, given["kv"], given["weight"], cache, *rest, q_out, kv_out)
    return q_out.cpu(), kv_out.cpu(), cache.view(torch.uint8).cpu()


def expected(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = rope.tables(case["positions"].cpu(), case["freqs"].cpu())
    q = rope.rotate(rms_norm(case["q"].cpu(), None, EPS), cos, sin)
    return q, rope.rotate(rms_norm(case["kv"].cpu(), case["weight"].cpu(), EPS), cos, sin)


def written(case: dict[str, Any], kv: torch.Tensor) -> torch.Tensor:
    """The cache after `formats.kv_record.write` of the tokens that have a slot."""
    cache = case["cache"].cpu().view(torch.uint8).clone()
    kept = case["slots"].cpu() >= 0
    kv_record.write(cache, case["slots"].cpu()[kept], kv[kept])
    return cache


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Within the budget, which is of a pair's length in the last 64 dims: a turn may cancel."""
    pair = right.float().unflatten(-1, (-1, 2)).norm(dim=-1, keepdim=True).expand(*right.shape[:-1], -1, 2).flatten(-2)
    return bool(((left.float() - right.float()).abs() <= SPEC.error.relative * pair).all())


@pytest.mark.parametrize(("tokens", "heads", "page"), [(1, 4, 256), (7, 5, 64), (4, 1, 2), (5, 2, 1), (3, 16, 256)])
def test_agrees_with_the_reference_and_the_bytes_are_those_of_the_row(tokens: int, heads: int, page: int) -> None:
    case = drawn(tokens, heads, page)
    q_out, kv_out, cache = run(case)
    q, kv = expected(case)
    assert agree(q_out, q) and agree(kv_out, kv) and torch.equal(cache, written(case, kv_out))


def test_where_the_sum_is_exact_the_bytes_are_the_references() -> None:
    """Integers up to 64: every order of the sum of squares gives the same fp32 number."""
    case = drawn(9, 3)
    generator = torch.Generator().manual_seed(5)
    case["kv"] = torch.randint(-64, 65, (9, 512), generator=generator).bfloat16().to(DEVICE)
    case["q"] = torch.randint(-64, 65, (9, 3, 512), generator=generator).bfloat16().to(DEVICE)
    q_out, kv_out, cache = run(case)
    q, kv = expected(case)
    if DEVICE == "cpu":  # a card's rsqrt is approximate
        assert torch.equal(q_out[..., :448], q[..., :448]) and torch.equal(kv_out[..., :448], kv[..., :448])
        differing = float((cache != written(case, kv)).float().mean() + (q_out != q).float().mean())
        assert differing <= 2.0**-12  # a turn's last bf16 bit, where cosine or sine differ in their last fp32 bit
    assert agree(q_out, q) and agree(kv_out, kv)


def test_slot_minus_one_and_nan_rows_leave_the_cache_alone() -> None:
    case = drawn(7, 2)
    whole = run(case)
    skipped = case["slots"] < 0
    kv = case["kv"].clone()
    kv[skipped] = torch.nan
    assert torch.equal(run(case, kv=kv)[2], whole[2])
    slots = case["slots"].clone()
    slots[skipped] = -(2**63)
    assert torch.equal(run(case, slots=slots)[2], whole[2])
    nothing = run(case, slots=torch.full_like(slots, -1))[2]
    assert torch.equal(nothing, case["cache"].cpu())


def test_no_tokens() -> None:
    case = drawn(0, 2)
    q_out, _, cache = run(case)
    assert q_out.shape == (0, 2, 512) and torch.equal(cache, case["cache"].cpu())


def test_both_cache_dtypes_give_the_same_bytes() -> None:
    case = drawn(5, 1)
    whole = run(case)[2]
    for dtype in (torch.float8_e4m3fn, torch.int8):
        assert torch.equal(run(case, cache=case["cache"].view(dtype))[2], whole)


def test_in_place_a_slice_of_a_wider_product_and_neighbours() -> None:
    case = drawn(6, 6)
    q_out, kv_out, cache = run(case)
    wide = torch.full((6, 1536), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    wide[:, 1024:] = case["kv"]
    q, pages = case["q"].clone(), case["cache"].clone()
    plan = api.plan(6, 64, EPS)
    rest = (case["weight"], pages, case["slots"], case["positions"], case["freqs"])
    kv = case["kv"].clone()
    plan.run(q, wide[:, 1024:], *rest, q)
    assert torch.equal(q.cpu(), q_out) and torch.equal(pages.cpu(), cache)
    plan.run(case["q"].clone(), kv, *rest, q, kv)
    assert torch.equal(kv.cpu(), kv_out) and torch.equal(pages.cpu(), cache)
    one = {name: value[3:4] if name in ("q", "kv", "slots", "positions") else value for name, value in case.items()}
    alone = run(one)
    assert torch.equal(alone[0][0], q_out[3]) and torch.equal(alone[1][0], kv_out[3])


def test_a_page_beyond_two_gigabytes() -> None:
    """Pages 2^30 bytes apart in one lazily committed allocation, so that page 3 begins past 2^31."""
    case = drawn(4, 1)
    stride, page = 1 << 30, 64
    width = kv_record.page_stride(page)
    storage = torch.empty(3 * stride + width, dtype=torch.uint8, device=DEVICE)
    far = storage.as_strided((4, width), (stride, 1))
    far.fill_(255)
    slots = torch.tensor([3 * page + 5, -1, 2 * page + 63, 0], device=DEVICE)
    plan = api.plan(1, page, EPS)
    kv_out = torch.empty(4, 512, dtype=torch.bfloat16, device=DEVICE)
    rest = (far, slots, case["positions"], case["freqs"])
    plan.run(case["q"], case["kv"], case["weight"], *rest, torch.empty_like(case["q"]), kv_out)
    near = {"cache": torch.full((4, width), 255, dtype=torch.uint8), "slots": slots}
    assert torch.equal(far.cpu(), written(near, kv_out.cpu()))


def test_what_is_refused() -> None:
    for heads, page, reason in ((0, 64, "heads=0: 1 to 4096"), (5000, 64, "heads=5000"), (4, 48, "page_size=48")):
        with pytest.raises(ValueError, match=reason):
            api.plan(heads, page, EPS)
    case = drawn(3, 2)
    for change, reason in (
        ({"kv": case["kv"].float()}, "kv is torch.float32"),
        ({"slots": case["slots"].int()}, "slots is torch.int32"),
        ({"slots": case["slots"][:2]}, r"slots is torch.int64 \(2,\)"),
        ({"positions": case["positions"].int()}, "positions is torch.int32"),
        ({"freqs": case["freqs"].double()}, "freqs is torch.float64"),
        ({"weight": case["weight"].float()}, "weight is torch.float32"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(case, **change)
    rest = (case["weight"], case["cache"], case["slots"], case["positions"], case["freqs"])
    with pytest.raises(ValueError, match=r"cache has pages of 64 records; expected 128"):
        api.plan(2, 128, EPS).run(case["q"], case["kv"], *rest, case["q"])
    off = torch.empty(case["cache"].nbytes + 8, dtype=torch.uint8, device=DEVICE)[8:].view(case["cache"].shape)
    with pytest.raises(ValueError, match=r"from address 8 modulo 16; expected a multiple of 16, and 0"):
        api.plan(2, 64, EPS).run(case["q"], case["kv"], case["weight"], off, *rest[2:], case["q"])
    with pytest.raises(ValueError, match=r"q_out is .* expected contiguous torch.bfloat16 \(3, 2, 512\)"):
        api.plan(2, 64, EPS).run(case["q"], case["kv"], *rest, case["kv"])
