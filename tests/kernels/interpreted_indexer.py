"""Index logits, keys and queries against the reference. Run by test_interpreter.py, or natively on a card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from wellhead.formats import e4m3, index_key, mxfp4
from wellhead.formats.paged import PagedLayout
from wellhead.ops.indexer import api, reference
from wellhead.ops.indexer.spec import SPEC, make, prepare, prepare_reference
from wellhead.ops.rope import api as rope

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = pytest.mark.parametrize("layout", api.LAYOUTS.values(), ids=list(api.LAYOUTS))
WRITES = {index_key.FP8: index_key.write_fp8, index_key.FP4: index_key.write_fp4}
UNTOUCHED = 123.0
PAGES = 7  # of a request's table; page 0 of the pool is NaN and belongs to nobody


def drawn(layout: PagedLayout, rows: list[int], lengths: list[int], heads: int, seed: int = 0) -> dict[str, Any]:
    """Tokens of requests rows with those lengths; unused ends of the page table are -1, pages padded with NaN bytes."""
    generator = torch.Generator().manual_seed(seed)
    tokens, requests = len(rows), max(rows, default=0) + 1
    pool = torch.full((1 + requests * PAGES, layout.page_stride(64) + 192), 255, dtype=torch.uint8)
    cache = pool[:, : layout.page_stride(64)]
    table = (1 + torch.randperm(requests * PAGES, generator=generator)).int().reshape(requests, PAGES)
    slots = torch.arange(64, 64 * (1 + requests * PAGES))
    size = 10.0 ** torch.linspace(-2, 1, 128)  # blocks of 32 have scales far apart
    WRITES[layout](cache, slots, torch.randn(len(slots), 128, generator=generator) * size)
    for request in range(requests):
        used = max((n for row, n in zip(rows, lengths, strict=True) if row == request), default=0)
        table[request, -(-used // 64) :] = -1
    q = torch.randn(tokens, heads, 128, generator=generator).bfloat16() / size.bfloat16()
    weights = torch.randn(tokens, heads, generator=generator) * (128 * 64) ** -0.5
    ints = [torch.tensor(x, dtype=torch.int32) for x in (rows, lengths)]
    return {"layout": layout, "q": q, "weights": weights, "pool": pool, "table": table, "rows": ints[0],
            "lengths": ints[1]}  # fmt: skip


def rounded(case: dict[str, Any]) -> tuple[api.Query, torch.Tensor]:
    """The query as the formats round it, and the weights the kernel takes."""
    if case["layout"] is index_key.FP8:
        codes, scale = index_key.quantize_fp8(case["q"])
        return api.Query(codes.to(DEVICE)), (case["weights"] * scale).to(DEVICE)
    packed, scale = mxfp4.quantize(case["q"])
    return api.Query(packed.to(DEVICE), scale.to(DEVICE)), case["weights"].to(DEVICE)


def found(case: dict[str, Any], *, chunked: bool = False, programs: int = 3) -> torch.Tensor:
    tokens, heads, _ = case["q"].shape
    plan = api.plan(max(tokens, 1), heads, PAGES * 64, case["layout"], chunked=chunked)
    plan = replace(plan, config=replace(plan.config, programs=programs))
    query, weights = rounded(case)
    out = torch.full((tokens, PAGES * 64), UNTOUCHED, device=DEVICE)
    cache = case["pool"].to(DEVICE)[:, : case["layout"].page_stride(64)]
    plan.run(query, weights, cache, *(case[name].to(DEVICE) for name in ("table", "rows", "lengths")), out)
    return out.cpu()


def expected(case: dict[str, Any]) -> torch.Tensor:
    cache = case["pool"][:, : case["layout"].page_stride(64)]
    q = reference.round_query(case["q"].float(), cache)
    out = torch.full((len(q), PAGES * 64), UNTOUCHED)
    for token, (row, length) in enumerate(zip(case["rows"].tolist(), case["lengths"].tolist(), strict=True)):
        entries = torch.arange(length)
        pages = case["table"][row].long()[entries // 64]
        keys = reference.read_keys(cache, torch.where(pages >= 0, pages * 64 + entries % 64, -1))
        scores = reference.logits(q[token : token + 1], keys, case["weights"][token : token + 1])[0]
        out[token, :length] = torch.where(pages >= 0, scores, -torch.inf)
    return out


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    finite = right.isfinite()
    bound = SPEC.error.absolute + SPEC.error.relative * right.abs()
    near = (left - right).abs() <= bound
    return bool(torch.where(finite, near, left == right).all())


@LAYOUTS
@pytest.mark.parametrize(("lengths", "heads"), [([], 64), ([130], 64), ([0, 1, 63, 64, 65, 448], 8), ([70, 0], 20)])
def test_each_request_with_one_token(layout: PagedLayout, lengths: list[int], heads: int) -> None:
    case = drawn(layout, list(range(len(lengths))), lengths, heads, seed=heads)
    assert agree(found(case), expected(case))


@LAYOUTS
@pytest.mark.parametrize("heads", [64, 8])
def test_tokens_of_a_request_share_keys(layout: PagedLayout, heads: int) -> None:
    rows = [0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2]  # boundaries inside aligned groups of 4 and of 8
    lengths = [0, 60, 64, 64, 65, 200, 0, 129, 129, 130, 130]
    case = drawn(layout, rows, lengths, heads)
    whole = found(case, chunked=True)
    assert agree(whole, expected(case))
    assert agree(found(case, chunked=False), whole)


@LAYOUTS
def test_the_number_of_programs_does_not_change_a_bit(layout: PagedLayout) -> None:
    case = drawn(layout, [0, 1], [448, 300], 16)
    assert torch.equal(found(case, programs=1), found(case, programs=16))


@LAYOUTS
def test_a_missing_page_gives_minus_infinity_and_is_not_read(layout: PagedLayout) -> None:
    case = drawn(layout, [0, 0], [448, 200], 8)
    case["table"][0, 1] = -1
    result = found(case, chunked=True)
    assert bool((result[:, 64:128] == -torch.inf).all()) and agree(result, expected(case))


def test_rows_of_tokens_without_entries_are_not_looked_at() -> None:
    case = drawn(index_key.FP8, [0, 0, 0], [70, 0, 0], 8)
    case["rows"][1:] = torch.tensor([-1, 1 << 30])
    assert bool((found(case)[1:] == UNTOUCHED).all())


def test_lengths_beyond_the_columns_stop_there() -> None:
    case = drawn(index_key.FP8, [0, 1], [448, 448], 8)
    usual = found(case)
    case["lengths"][0] = 1 << 30
    assert torch.equal(found(case), usual)


@LAYOUTS
def test_pages_past_two_gigabytes(layout: PagedLayout) -> None:
    page = 2**31 // layout.page_stride(64) + 3
    cache = torch.empty(page + 1, layout.page_stride(64), dtype=torch.uint8, device=DEVICE)  # only one page is touched
    near = drawn(layout, [0], [64], 8)
    keys = torch.randn(64, 128, generator=torch.Generator().manual_seed(3)).bfloat16()
    small = index_key.allocate_pages(layout, 2)
    WRITES[layout](small, torch.arange(64, 128), keys)
    cache[page] = small[1].to(DEVICE)
    plan, (query, weights) = api.plan(1, 8, 64, layout), rounded(near)
    results = []
    for pool, at in ((cache, page), (small.to(DEVICE), 1)):
        table, out = torch.tensor([[at]], dtype=torch.int32, device=DEVICE), torch.zeros(1, 64, device=DEVICE)
        plan.run(query, weights, pool, table, near["rows"].to(DEVICE), near["lengths"].to(DEVICE), out)
        results.append(out)
    assert torch.equal(*results)


def hostile_vectors(count: int) -> torch.Tensor:
    """Every bf16 magnitude a vector may have, zeros of both signs, ties of the rounding."""
    rows = torch.randn(count, 128, generator=torch.Generator().manual_seed(5)) * 10.0 ** torch.linspace(-6, 3, 128)
    rows[0], rows[1] = 0.0, -0.0
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    rows[2] = torch.cat((ties, -ties)).repeat(8)
    rows[3] = 2e-38  # below the floor of a scale; bf16 denormals are not what they are under the interpreter
    rows[4] = torch.arange(128) * 3.5
    return rows.bfloat16()


@LAYOUTS
def test_turned_queries(layout: PagedLayout) -> None:
    q = torch.randn(20, 1, 128, generator=torch.Generator().manual_seed(8)).bfloat16()
    q[3] = 0
    q[3, 0, 5] = 2.0  # one outlier becomes 128 equal magnitudes with Sylvester's signs
    weights = torch.ones(20, 1)
    wanted, folded = rounded({"layout": layout, "q": reference.rotate(q), "weights": weights})
    codes = torch.empty_like(wanted.codes)
    tail = torch.empty_like(folded if wanted.scale is None else wanted.scale)
    scaled = torch.empty(20, 1, device=DEVICE)
    api.round_query(q.to(DEVICE), weights.to(DEVICE), codes, tail, layout=layout, rotate=True, scaled=scaled)
    mine, theirs = (c.view(torch.uint8).cpu() for c in (codes, wanted.codes))
    assert torch.equal(mine[3], theirs[3])
    # the sum's order may move a bf16 rounding, and that a code, rarely
    assert float((mine != theirs).float().mean()) < 0.02


@LAYOUTS
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rounded_queries(layout: PagedLayout, kind: torch.dtype) -> None:
    q = hostile_vectors(24).reshape(3, 8, 128)
    weights = torch.randn(3, 8, generator=torch.Generator().manual_seed(9)).to(kind)
    query, folded = rounded({"layout": layout, "q": q, "weights": weights.float() * 0.125})
    codes, scaled = torch.empty_like(query.codes), torch.empty(3, 8, device=DEVICE)
    tail = torch.empty_like(folded if query.scale is None else query.scale)
    given = {"layout": layout, "rotate": False, "factor": 0.125, "scaled": scaled}
    api.round_query(q.to(DEVICE), weights.to(DEVICE), codes, tail, **given)
    assert torch.equal(codes.view(torch.uint8), query.codes.view(torch.uint8))
    assert torch.equal(tail, folded if query.scale is None else query.scale)
    assert query.scale is None or torch.equal(scaled.cpu(), weights.float() * 0.125)


@LAYOUTS
def test_queries_are_rotated_on_the_way(layout: PagedLayout) -> None:
    generator = torch.Generator().manual_seed(11)
    q, weights = torch.randn(3, 8, 128, generator=generator).bfloat16().to(DEVICE), torch.ones(3, 8, device=DEVICE)
    positions = torch.tensor([0, 77, 900_001], device=DEVICE)
    freqs = (10000.0 ** -(torch.arange(32) / 32)).to(DEVICE)
    turned = torch.empty_like(q)
    rope.plan(8, 128).run(q, positions, freqs, turned)
    results = []
    for given, rotation in ((turned, None), (q, (positions, freqs))):
        width, kind = (128, torch.float8_e4m3fn) if layout is index_key.FP8 else (64, torch.uint8)
        codes = torch.empty(3, 8, width, dtype=kind, device=DEVICE)
        tail = torch.empty(3, 8, device=DEVICE)
        tail = tail if layout is index_key.FP8 else torch.empty(3, 8, 4, dtype=torch.uint8, device=DEVICE)
        api.round_query(
            given, weights, codes, tail, layout=layout, rotate=True, rotation=rotation, scaled=torch.empty_like(weights)
        )
        results.append(codes.view(torch.uint8).cpu())
    # two compilations of one rotation may round a bf16 value to either side
    assert float((results[0] != results[1]).float().mean()) < 0.01


@pytest.mark.parametrize("name", list(api.LAYOUTS))
@pytest.mark.parametrize(("tokens", "requests"), [(2, 2), (5, 1)])
def test_cases_agree_with_their_reference(name: str, tokens: int, requests: int) -> None:
    inputs = make(name, tokens, requests, 8, 128, torch.Generator(DEVICE).manual_seed(4), DEVICE)
    result, wanted = prepare(inputs)().cpu(), prepare_reference(inputs)().cpu()
    assert result.shape == (tokens, 128) and float(wanted.abs().max()) > 0.1
    assert agree(result, wanted)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"heads=65: 1 to 64"):
        api.plan(1, 65, 64, index_key.FP8)
    with pytest.raises(ValueError, match=r"columns=100: a multiple of 64"):
        api.plan(1, 64, 100, index_key.FP8)
    case = drawn(index_key.FP8, [0], [64], 8)
    with pytest.raises(ValueError, match=r"expected pages of bytes \[pages, 8448\]"):
        found({**case, "pool": case["pool"][:, :4352].contiguous()})
    with pytest.raises(ValueError, match=r"page_table has 6 pages of 64; 448 columns need more"):
        found({**case, "table": case["table"][:, :6].contiguous()})
    codes = e4m3.cast(case["q"]).to(DEVICE)
    with pytest.raises(ValueError, match=r"query.codes is torch.float8_e4m3fn .* contiguous torch.uint8 \(1, 8, 64\)"):
        plan = api.plan(1, 8, 448, index_key.FP4)
        rest = (case[name].to(DEVICE) for name in ("weights", "pool", "table", "rows", "lengths"))
        plan.run(api.Query(codes), *rest, torch.zeros(1, 448, device=DEVICE))
