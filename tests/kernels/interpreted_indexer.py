"""Index logits, keys and queries against the reference. Run by test_interpreter.py, or natively on a card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from wellhead.formats import e4m3, index_key, kv_record, mxfp4
from wellhead.formats.paged import PagedLayout
from wellhead.ops.indexer import api, reference
from wellhead.ops.indexer.rounding import _fp4, _fp8
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


@triton.jit
def rounding_kernel(x, codes, tail, BN: tl.constexpr, FP4: tl.constexpr):
    row, column = tl.program_id(0) * BN + tl.arange(0, BN)[:, None], tl.arange(0, 128)[None, :]
    vectors = tl.load(x + row * 128 + column).to(tl.float32)
    if FP4:
        rounded, exponent = _fp4(vectors, BN)
        tl.store(codes + row * 64 + tl.arange(0, 64)[None, :], rounded)
        tl.store(tail + row * 4 + tl.arange(0, 4)[None, :], exponent.to(tl.uint8))
    else:
        rounded, scale = _fp8(vectors)
        tl.store(codes + row * 128 + column, rounded)
        tl.store(tail + row, scale[:, None])


@LAYOUTS
def test_rounding_is_the_formats(layout: PagedLayout) -> None:
    q = hostile_vectors(32).unsqueeze(1)
    query, scale = rounded({"layout": layout, "q": q, "weights": torch.ones(32, 1)})
    codes, tail = torch.empty_like(query.codes), torch.empty_like(scale if query.scale is None else query.scale)
    fp4 = layout is index_key.FP4
    rounding_kernel[(2,)](q.to(DEVICE), codes.view(torch.uint8), tail, BN=16, FP4=fp4)
    assert torch.equal(codes.view(torch.uint8), query.codes.view(torch.uint8))
    assert torch.equal(tail, scale if query.scale is None else query.scale)


def round_query(
    layout: PagedLayout, q: torch.Tensor, weights: torch.Tensor, positions: torch.Tensor, factor: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(codes, tail, scaled), on the CPU."""
    tokens, heads, _ = q.shape
    width, kind = (128, torch.float8_e4m3fn) if layout is index_key.FP8 else (64, torch.uint8)
    codes = torch.empty(tokens, heads, width, dtype=kind, device=DEVICE)
    scaled = torch.empty(tokens, heads, device=DEVICE)
    scales = torch.empty(tokens, heads, 4, dtype=torch.uint8, device=DEVICE)
    tail = torch.empty_like(scaled) if layout is index_key.FP8 else scales
    rotation = positions.to(DEVICE), (10000.0 ** -(torch.arange(32) / 32)).to(DEVICE)
    given = {"layout": layout, "rotation": rotation, "factor": factor, "scaled": scaled}
    api.round_query(q.to(DEVICE), weights.to(DEVICE), codes, tail, **given)
    return codes.view(torch.uint8).cpu(), tail.cpu(), scaled.cpu()


@LAYOUTS
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_turned_queries(layout: PagedLayout, kind: torch.dtype) -> None:
    """Position 0 turns nothing; what is not 16 heads a token has vectors of several in a program."""
    q = torch.randn(5, 4, 128, generator=torch.Generator().manual_seed(8)).bfloat16()
    q[3, 0] = 0
    q[3, 0, 5] = 2.0  # one outlier becomes 128 equal magnitudes with Sylvester's signs
    weights = torch.randn(5, 4, generator=torch.Generator().manual_seed(9)).to(kind)
    wanted, folded = rounded({"layout": layout, "q": reference.rotate(q), "weights": weights.float() * 0.125})
    codes, tail, scaled = round_query(layout, q, weights, torch.zeros(5, dtype=torch.int64), 0.125)
    theirs = wanted.codes.view(torch.uint8).cpu()
    assert torch.equal(codes[3, 0], theirs[3, 0])
    # the sum's order may move a bf16 rounding, and that a code, rarely
    assert float((codes != theirs).float().mean()) < 0.02
    if wanted.scale is None:
        torch.testing.assert_close(tail, folded.cpu(), rtol=2.0**-7, atol=0)
    else:
        assert float((tail != wanted.scale.cpu()).float().mean()) < 0.05
        assert torch.equal(scaled, weights.float() * 0.125)


@LAYOUTS
@pytest.mark.parametrize("heads", [8, 16])
def test_queries_are_rotated_on_the_way(layout: PagedLayout, heads: int) -> None:
    q = torch.randn(3, heads, 128, generator=torch.Generator().manual_seed(11)).bfloat16().to(DEVICE)
    positions, weights = torch.tensor([0, 77, 900_001], device=DEVICE), torch.ones(3, heads, device=DEVICE)
    freqs, turned = (10000.0 ** -(torch.arange(32) / 32)).to(DEVICE), torch.empty_like(q)
    rope.plan(heads, 128).run(q, positions, freqs, turned)
    apart = round_query(layout, turned, weights, torch.zeros_like(positions))[0]
    # two compilations of one rotation may round a bf16 value to either side
    assert float((apart != round_query(layout, q, weights, positions)[0]).float().mean()) < 0.01


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
    for refused in (
        lambda: api.plan(1, 64, 64, kv_record.LAYOUT),
        lambda: round_query(kv_record.LAYOUT, case["q"], case["weights"], torch.zeros(1, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match=r"layout='.*': expected 'FP8 index key' or 'FP4 index key'"):
            refused()
    with pytest.raises(ValueError, match=r"expected pages of bytes \[pages, 8448\]"):
        found({**case, "pool": case["pool"][:, :4352].contiguous()})
    with pytest.raises(ValueError, match=r"page_table has 6 pages of 64; 448 columns need more"):
        found({**case, "table": case["table"][:, :6].contiguous()})
    codes = e4m3.cast(case["q"]).to(DEVICE)
    with pytest.raises(ValueError, match=r"query.codes is torch.float8_e4m3fn .* contiguous torch.uint8 \(1, 8, 64\)"):
        plan = api.plan(1, 8, 448, index_key.FP4)
        rest = (case[name].to(DEVICE) for name in ("weights", "pool", "table", "rows", "lengths"))
        plan.run(api.Query(codes), *rest, torch.zeros(1, 448, device=DEVICE))
