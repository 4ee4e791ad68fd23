"""Caches, compression, index scores, choice and sparse attention against loops over their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from wellhead.formats import index_key, kv_record
from wellhead.ops.compressor import reference as compressor
from wellhead.ops.indexer import reference as indexer
from wellhead.ops.kv_store import reference as kv_store
from wellhead.ops.rope import reference as rope
from wellhead.ops.sparse_mla import reference as sparse_mla
from wellhead.ops.topk import reference as topk


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_slots_follow_the_page_table() -> None:
    table = torch.tensor([[4, 2, 9], [7, 0, 0]], dtype=torch.int32)
    rows = torch.tensor([0, 0, 1])
    records = torch.tensor([[0, 63, 64], [128, 191, -1], [-1, 5, 63]])
    expected = [[256, 319, 128], [9 * 64, 9 * 64 + 63, -1], [-1, 7 * 64 + 5, 7 * 64 + 63]]
    assert kv_store.slots(table, rows, records, 64).tolist() == expected


@pytest.mark.parametrize("packed", [False, True])
def test_store_writes_only_named_slots(packed: bool) -> None:
    cache = kv_record.allocate_pages(3, 4) if packed else torch.zeros(3, 4, 512)
    records = randn(4, 512).bfloat16().float()
    kv_store.write(cache, torch.tensor([11, -1, 0, 5]), records)
    found = kv_store.read(cache, torch.tensor([[11, -1, 0], [5, 1, 10]])).float()
    # E4M3 keeps 3 mantissa bits: half a step of 2^-4 relative, or of the group's smallest step
    tolerance = {"rtol": 2**-4, "atol": 2**-9} if packed else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(found[0, 0], records[0], **tolerance)
    torch.testing.assert_close(found[1, 0], records[3], **tolerance)
    torch.testing.assert_close(found[0, 2], records[2], **tolerance)
    assert not found[0, 1].any() and not found[1, 1:].any()


@pytest.mark.parametrize("ratio", [4, 128])
def test_compressor_step_by_step_equals_the_formula(ratio: int) -> None:
    """Two requests of 300 tokens in uneven chunks; slot 2 starts full of NaN."""
    dim, tokens = 6, 300
    width = compressor.overlap(ratio) * dim
    kv, score = randn(2, tokens, width), randn(2, tokens, width, seed=1)
    state = torch.full((3, compressor.ring_rows(ratio), 2 * width), torch.nan)
    slots, found = torch.tensor([2, 0]), {0: [], 1: []}
    at = [0, 0]
    for sizes in [(1, 150), (2, 3), (4, 1), (120, 0), (3, 1), (170, 145)]:
        positions = torch.cat([torch.arange(at[r], at[r] + n) for r, n in enumerate(sizes)])
        rows = torch.tensor([0] * sizes[0] + [1] * sizes[1])
        starts = torch.tensor([0, sizes[0], sum(sizes)])
        blocks = compressor.completed_blocks(ratio, positions, rows, starts, slots)
        pooled = compressor.advance(state, kv[rows, positions], score[rows, positions], blocks)
        for token, entry, value in zip(blocks.token.tolist(), blocks.entry.tolist(), pooled, strict=True):
            assert entry == len(found[int(rows[token])])
            found[int(rows[token])].append(value)
        at = [a + n for a, n in zip(at, sizes, strict=True)]
    assert at == [tokens, tokens]
    for request in (0, 1):
        assert len(found[request]) == tokens // ratio
        for entry, value in enumerate(found[request]):
            torch.testing.assert_close(value, expected_entry(kv[request], score[request], entry, ratio, dim))


def expected_entry(kv: torch.Tensor, score: torch.Tensor, entry: int, ratio: int, dim: int) -> torch.Tensor:
    out = torch.zeros(dim)
    for channel in range(dim):
        pairs = []
        for token in range(entry * ratio, (entry + 1) * ratio):
            own = channel + dim if ratio == 4 else channel
            pairs.append((float(score[token, own]), float(kv[token, own])))
            if ratio == 4 and entry > 0:
                pairs.append((float(score[token - 4, channel]), float(kv[token - 4, channel])))
        weights = [math.exp(s) for s, _ in pairs]
        out[channel] = sum(w * v for w, (_, v) in zip(weights, pairs, strict=True)) / sum(weights)
    return out


def test_compressor_projection_adds_the_row_of_the_position() -> None:
    x, wkv, wgate, ape = randn(3, 8), randn(5, 8, seed=1), randn(5, 8, seed=2), randn(4, 5, seed=3)
    kv, score = compressor.project(x, wkv, wgate, ape, torch.tensor([6, 7, 8]))
    torch.testing.assert_close(kv, x @ wkv.T)
    torch.testing.assert_close(score, x @ wgate.T + ape[[2, 3, 0]])


@pytest.mark.parametrize("kind", ["plain", "fp8", "fp4"])
def test_index_logits_over_paged_keys(kind: str) -> None:
    cache = {
        "plain": torch.zeros(2, 64, 128),
        "fp8": index_key.allocate_pages(index_key.FP8, 2),
        "fp4": index_key.allocate_pages(index_key.FP4, 2),
    }[kind]
    keys, q, weights = randn(70, 128), randn(5, 8, 128, seed=1), randn(5, 8, seed=2)
    slots = torch.randperm(128, generator=torch.Generator().manual_seed(3))[:70]
    indexer.write_keys(cache, slots, keys)
    seen, query = indexer.read_keys(cache, slots), indexer.round_query(q, cache)
    relative = float((seen - keys).norm() / keys.norm())
    bounds = {"plain": (0, 0), "fp8": (0.005, 0.04), "fp4": (0.05, 0.2)}[kind]
    assert bounds[0] <= relative <= bounds[1] and torch.equal(query, q) == (kind == "plain")
    found = indexer.paged_logits(query, cache, slots, weights)
    for t in range(5):
        for c in (0, 33, 69):
            expected = sum(max(0.0, float(query[t, h] @ seen[c])) * float(weights[t, h]) for h in range(8))
            assert float(found[t, c]) == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert found.shape == (5, 70)
    assert indexer.paged_logits(query[:0], cache, slots, weights[:0]).shape == (0, 70)


def test_index_cache_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"8448.*4352.*got shape \(2, 100\)"):
        indexer.read_keys(torch.zeros(2, 100, dtype=torch.uint8), torch.tensor([0]))


def test_hadamard_is_orthogonal_and_sylvester() -> None:
    h = indexer.hadamard(128)
    torch.testing.assert_close(h @ h.T, torch.eye(128))
    parity = lambda i, j: (-1) ** (i & j).bit_count()  # noqa: E731
    assert all(
        float(h[i, j]) * 128**0.5 == pytest.approx(parity(i, j)) for i, j in ((0, 5), (3, 7), (127, 127), (64, 65))
    )
    with pytest.raises(ValueError, match="power of two, got 96"):
        indexer.hadamard(96)


def test_topk_prefers_the_lower_entry_and_pads() -> None:
    scores = torch.tensor([[1.0, 3, 3, 2, 9], [5, 5, 5, 5, 5], [0, -1, -2, 7, 7], [4, 4, 4, 4, 4]])
    visible = torch.tensor([4, 5, 2, 0])
    assert topk.select(scores, visible, 2).tolist() == [[1, 2], [0, 1], [0, 1], [-1, -1]]
    assert topk.select(scores, visible, 3).tolist() == [[1, 2, 3], [0, 1, 2], [0, 1, -1], [-1, -1, -1]]
    assert topk.select(scores, visible, 7)[1].tolist() == [0, 1, 2, 3, 4, -1, -1]
    assert topk.first(visible, 5)[2].tolist() == [0, 1, -1, -1, -1]
    assert topk.select(scores[:0], visible[:0], 2).shape == (0, 2)
    lowest = torch.full((1, 3), -torch.inf)
    assert topk.select(lowest, torch.tensor([2]), 2).tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_attention_is_one_softmax_with_a_sink(dtype: torch.dtype) -> None:
    tokens, heads, dim = 5, 3, 16
    window, extra = randn(2, 8, dim).to(dtype), randn(3, 4, dim, seed=1).to(dtype)
    window[0, 0] = extra[0, 0] = torch.nan  # what -1 must not reach
    q, sink = randn(tokens, heads, dim, seed=2).to(dtype), randn(heads, seed=3)
    near = torch.tensor([[-1, -1, 3], [-1, 9, 2], [15, 14, 1], [5, 6, 7], [-1, -1, -1]])
    far = torch.tensor([[-1, -1], [4, -1], [11, 7], [-1, 6], [-1, -1]])
    found = sparse_mla.attend_paged(q, [(window, near), (extra, far)], sink, 0.25)
    assert found.dtype == dtype
    for t in range(tokens):
        records = [window.view(-1, dim)[s] for s in near[t] if s >= 0] + [
            extra.view(-1, dim)[s] for s in far[t] if s >= 0
        ]
        for h in range(heads):
            scores = [float(q[t, h].float() @ r.float()) * 0.25 for r in records]
            total = sum(map(math.exp, scores)) + math.exp(float(sink[h]))
            expected = sum((math.exp(s) * r.float() for s, r in zip(scores, records, strict=True)), torch.zeros(dim))
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(found[t, h].float(), expected / total, rtol=tolerance, atol=tolerance)
    assert not found[4].any()
    assert sparse_mla.attend_paged(q[:0], [(window, near[:0])], sink, 0.25).shape == (0, heads, dim)


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_sparse_attention_over_a_pool_without_slots(tokens: int) -> None:
    """As without that pool; with no slots at all, nothing."""
    cache, q, sink = randn(4, 8, 16), randn(tokens, 2, 16, seed=1), randn(2, seed=2)
    slots = torch.arange(5 * tokens).view(tokens, 5)
    alone, none = sparse_mla.attend_paged(q, [(cache, slots)], sink, 0.25), (cache, slots[:, :0])
    for pools in ([(cache, slots), none], [none, (cache, slots)]):
        assert torch.equal(sparse_mla.attend_paged(q, pools, sink, 0.25), alone)
    assert torch.equal(sparse_mla.attend_paged(q, [none, none], sink, 0.25), torch.zeros_like(q))


def test_sparse_attention_does_not_depend_on_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, q, sink = randn(4, 64, 16), randn(90, 2, 16, seed=1), randn(2, seed=2)
    slots = torch.randint(-1, 256, (90, 100), generator=torch.Generator().manual_seed(4))
    whole = sparse_mla.attend_paged(q, [(cache, slots)], sink, 0.25)
    monkeypatch.setattr(sparse_mla, "GATHER_BYTES", 1)
    torch.testing.assert_close(sparse_mla.attend_paged(q, [(cache, slots)], sink, 0.25), whole)


def test_rope_frequencies_turns_and_returns() -> None:
    plain = rope.frequencies(64, 10000.0, None)
    yarn = rope.frequencies(64, 160000.0, rope.Yarn(16, 65536, 32, 1))
    assert float(plain[31]) == pytest.approx(10000 ** (-62 / 64))
    # published model: unchanged up to index 15, ramp, divided by 16 from index 25 on
    for index, value in (
        (0, 1.0),
        (15, 3.635539e-3),
        (16, 2.265625e-3),
        (20, 2.969778e-4),
        (25, 5.372313e-6),
        (31, 5.680529e-7),
    ):
        assert float(yarn[index]) == pytest.approx(value, rel=1e-5)
    x, positions = randn(3, 2, 80), torch.tensor([0, 7, 100000])
    turned = rope.apply(x, positions, yarn)
    assert torch.equal(turned[0], x[0]) and torch.equal(turned[..., :16], x[..., :16])
    angle = 7 * float(yarn[3])
    a, b = float(x[1, 1, 22]), float(x[1, 1, 23])
    assert float(turned[1, 1, 22]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
    assert float(turned[1, 1, 23]) == pytest.approx(a * math.sin(angle) + b * math.cos(angle), abs=1e-5)
    torch.testing.assert_close(rope.apply(turned, positions, yarn, inverse=True), x, rtol=1e-5, atol=1e-5)
