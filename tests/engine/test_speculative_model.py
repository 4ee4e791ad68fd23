"""A real small model and its random MTP layer: the same greedy answers, the same distribution, the same caches."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch

from fakes.drafting import helped
from fakes.statistics import chi_square, places
from wellhead.engine import speculative
from wellhead.engine.llm import LLM
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.model.batch import Batch, Chunk
from wellhead.ops.compressor import reference as compressor

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(2, 258, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def plain(folder: Path) -> LLM:
    return LLM(folder, progress=False, num_pages=16, max_running=16, chunk_tokens=256)


@pytest.fixture(scope="module")
def drafting(folder: Path) -> LLM:
    return LLM(folder, progress=False, num_pages=16, max_running=16, chunk_tokens=256, speculative_tokens=3)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    yield
    if "drafting" in request.fixturenames:
        engine = request.getfixturevalue("drafting").engine
        engine.check()
        assert engine.free_pages == 16 and not engine.busy
        engine.forget_prefixes()


def help_along(monkeypatch: pytest.MonkeyPatch, llm: LLM, truth: dict[tuple[int, ...], list[int]]) -> None:
    """Put the right token in place of five drafts of six of the prompts in `truth`; MTP runs all the same."""
    runner = llm.engine._runner
    monkeypatch.setattr(runner, "propose", helped(runner, truth))


PROMPTS = [prompt(n, n) for n in (1, 5, 245, 118, 260)]


def test_greedy_answers_are_the_same(monkeypatch: pytest.MonkeyPatch, plain: LLM, drafting: LLM) -> None:
    """Alone with MTP's random drafts, of which few are right, and with drafts of which most are; over block and page
    ends, with and without logprobs.
    """
    params = dataclasses.replace(GREEDY, logprobs=2)
    expected = plain.generate(PROMPTS, params)
    unaided = drafting.generate(PROMPTS[2:4], GREEDY)
    drafting.engine.forget_prefixes()
    help_along(monkeypatch, drafting, {tuple(p): d.token_ids for p, d in zip(PROMPTS, expected, strict=True)})
    before = drafting.engine.counters
    found = drafting.generate(PROMPTS, params)
    assert [done.token_ids for done in unaided] == [done.token_ids for done in expected[2:4]]
    assert [done.token_ids for done in found] == [done.token_ids for done in expected]
    for mine, other in zip(found, expected, strict=True):
        for a, b in zip(mine.logprobs or (), other.logprobs or (), strict=True):
            assert a == pytest.approx(b, abs=0.02)
    counters = drafting.engine.counters
    accepted = counters.accepted_tokens - before.accepted_tokens
    assert accepted == sum(done.accepted_tokens for done in found) > 40
    assert accepted + counters.draft_steps - before.draft_steps > 0.9 * 23 * len(PROMPTS)
    assert sum(done.drafted_tokens for done in found) == counters.drafted_tokens - before.drafted_tokens > accepted


def test_sampled_answers_do_not_depend_on_who_runs_beside(folder: Path, drafting: LLM) -> None:
    """Nor on preemption: two requests of two pages each in the end, on three pages."""
    prompts = [prompt(246, 51), prompt(246, 52)]
    params = [SamplingParams(max_tokens=24, temperature=3.0, seed=i, ignore_eos=True, logprobs=1) for i in (1, 2)]
    small = LLM(
        folder, progress=False, num_pages=3, max_running=2, chunk_tokens=300, speculative_tokens=3, prefix_caching=False
    )
    together = small.generate(prompts, params)
    small.engine.check()
    assert small.engine.counters.preemptions == 1
    assert together == [drafting.generate([p], own)[0] for p, own in zip(prompts, params, strict=True)]
    assert sum(done.accepted_tokens for done in together) > 3
    assert all(len(done.logprobs or ()) == 24 for done in together)


def test_a_reused_prefix_gives_the_same_greedy_tokens(plain: LLM, drafting: LLM) -> None:
    """Of a prompt, and of an answer that crossed the page's end."""
    ids = prompt(250, 43)
    (first,) = drafting.generate([ids], GREEDY)
    longer = ids + first.token_ids[:20]
    before = drafting.engine.counters.prefix_hit_tokens
    (again,) = drafting.generate([longer], GREEDY)
    assert drafting.engine.counters.prefix_hit_tokens - before == 256
    assert again == plain.generate([longer], GREEDY)[0]


def test_caches_after_rejections_are_those_of_the_accepted_tokens(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Every record up to the newest, MTP's too, and the ring rows of all tokens that a block may still pool, against
    one pass over the same tokens; positions behind have been written by drafts.
    """
    llm = LLM(folder, progress=False, numerics="exact", num_pages=3, max_running=2, speculative_tokens=3)
    plain = LLM(folder, progress=False, numerics="exact", num_pages=3, max_running=2)
    ids, params = prompt(120, 7), dataclasses.replace(GREEDY, max_tokens=40)
    help_along(monkeypatch, llm, {tuple(ids): plain.generate([ids], params)[0].token_ids})
    engine, model = llm.engine, llm._model
    request = engine.make_request(ids, params)
    engine.submit(request)
    checked = 0
    while len(request.output) < 36:
        before = request.accepted, request.drafted
        engine.step()
        accepted, drafted = request.accepted - before[0], request.drafted - before[1]
        if drafted > accepted and request.computed > 130:
            checked += 1
            known = request.tokens(0, request.known)
            state = model.allocate(3, 2)
            batch = Batch.build([Chunk(known[:-1], 0, request.pages, request.state_slot, "all", request.window_pages)])
            streams = model.forward(batch, state)
            model.draft(streams, torch.tensor(known[1:]), batch, state)
            compare(engine._runner.state, state, request)
    assert checked > 2
    engine.abort(request)
    engine.check()


def compare(found: object, expected: object, request: Request) -> None:
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    layers = zip((*found.layers, *found.mtp), (*expected.layers, *expected.mtp), strict=True)  # type: ignore
    for mine, other in layers:
        last, (page,) = request.computed, request.pages
        assert other.window[page, last - 1].any()
        close(mine.window[page, :last], other.window[page, :last])
        for name in ("compressed", "index_keys"):
            if getattr(mine, name) is not None:
                entries = last // mine.ratio
                close(getattr(mine, name)[page, :entries], getattr(other, name)[page, :entries])
        for name in ("compressor", "index_compressor"):
            if getattr(mine, name) is not None:
                rings = getattr(mine, name)[request.state_slot], getattr(other, name)[request.state_slot]
                pooled = compressor.pooled_rows(mine.ratio)
                needed = torch.arange(last + 1 - pooled, last) % compressor.ring_rows(mine.ratio)
                close(rings[0][needed], rings[1][needed])


def test_tokens_sampled_with_mtp_are_drawn_from_the_model(monkeypatch: pytest.MonkeyPatch, drafting: LLM) -> None:
    prompts = [prompt(4 + i % 7, i) for i in range(32)]
    params = [SamplingParams(max_tokens=16, temperature=1.5, seed=i, ignore_eos=True) for i in range(32)]
    before = drafting.engine.counters

    def deviation() -> float:
        counts = torch.histc(places(drafting, prompts, params), 8, 0, 1).double()
        return chi_square(counts, torch.full((8,), 1 / 8, dtype=torch.float64))

    assert deviation() < 4
    counters = drafting.engine.counters
    assert counters.accepted_tokens - before.accepted_tokens > 20
    # the test sees a rule that takes every draft
    monkeypatch.setattr(speculative, "_token", lambda row, draft, params, generator: draft.token)
    assert deviation() > 6


def test_an_answer_ends_within_accepted_drafts(monkeypatch: pytest.MonkeyPatch, plain: LLM, drafting: LLM) -> None:
    """At the end token, at a stop string, at max_tokens; nothing behind is shown, and streams add up."""
    ids = prompt(30, 8)
    (free,) = plain.generate([ids], GREEDY)
    help_along(monkeypatch, drafting, {tuple(ids): free.token_ids})
    for count in (1, 2, 4, 7):
        (done,) = drafting.generate([ids], dataclasses.replace(GREEDY, max_tokens=count, logprobs=1))
        assert done.accepted_tokens <= done.drafted_tokens <= 3 * done.draft_steps
        assert done.token_ids == free.token_ids[:count] and len(done.logprobs or ()) == count
    deltas = list(drafting.stream(ids, GREEDY))
    assert [token for delta in deltas for token in delta.token_ids] == free.token_ids
    assert "".join(delta.text for delta in deltas) == free.text and len(deltas) < 20
    stopping = dataclasses.replace(GREEDY, ignore_eos=False, logprobs=1)
    before, counted = drafting.engine.counters, 0
    for end in set(free.token_ids[3:6]):
        for llm in (plain, drafting):
            monkeypatch.setattr(llm.engine, "eos_ids", frozenset([end]))
        (ended,) = drafting.generate([ids], stopping)
        assert ended == plain.generate([ids], stopping)[0] and ended.finish_reason == "stop"
        counted += ended.accepted_tokens
        assert drafting.engine.counters.accepted_tokens - before.accepted_tokens == counted
        assert 0 < ended.accepted_tokens < len(ended.token_ids) <= 1 + ended.accepted_tokens + ended.draft_steps


def test_closing_a_stream_with_drafts_leaves_others_alone(plain: LLM, drafting: LLM) -> None:
    first, second = drafting.stream(prompt(100), GREEDY), drafting.stream(prompt(20), GREEDY)
    tokens = list(next(second).token_ids)
    next(first)
    tokens += next(second).token_ids
    first.close()
    drafting.engine.check()
    tokens += [token for delta in second for token in delta.token_ids]
    assert tokens == plain.generate([prompt(20)], GREEDY)[0].token_ids


def test_the_embedded_model_says_the_same() -> None:
    prompts, params = ["15 + 27 =", "Once upon a time"], SamplingParams(max_tokens=6, ignore_eos=True)
    plain, found = (LLM(progress=False, speculative_tokens=n).generate(prompts, params) for n in (0, 2))
    assert plain == found
    assert all(done.drafted_tokens >= 3 for done in found)
    assert found[0].accepted_tokens >= 2  # of a sum, which its drafting layer has learnt


def test_misuse_is_refused(folder: Path) -> None:
    for value in (4, -1, True, "2"):
        with pytest.raises(ValueError, match=r"speculative_tokens is .*, expected 0 to 3"):
            LLM(folder, progress=False, speculative_tokens=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"chunk_tokens is 100, expected at least 128: .* may need 4 tokens"):
        LLM(folder, progress=False, speculative_tokens=3, chunk_tokens=100)
