"""Drafts change how many steps an answer takes, never the answer: the rule, the caches, the real model, the traffic."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from fakes.drafting import OracleRunner
from fakes.hash_model import END, HashModel, HashState, answer, next_logits
from fakes.scenario import SMALL, Scenario
from wellhead.engine import speculative
from wellhead.engine.core import Engine
from wellhead.engine.llm import LLM
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.speculative import Draft, draft_count
from wellhead.model.batch import Batch, Chunk
from wellhead.ops.sampling import reference as sampling

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
KINDS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=4),
    SamplingParams(temperature=1.5, top_p=0.6),
    SamplingParams(temperature=1.2, top_k=7, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=1),
]


def chi_square(counts: torch.Tensor, probability: torch.Tensor) -> float:
    """In deviations of the chi-square distribution from its mean; nothing may be counted where nothing is expected."""
    expected = probability * counts.sum()
    assert not counts[expected == 0].any()
    kept = expected > 0
    freedom = max(1, int(kept.sum()) - 1)
    statistic = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("params", KINDS, ids=repr)
def test_restricted_is_what_the_sampler_draws_from(monkeypatch: pytest.MonkeyPatch, params: SamplingParams) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 2
    logits[5] = logits[3]
    counts, points = torch.zeros(12), 4000
    for point in range(points):
        uniform = torch.tensor((point + 0.5) / points, dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *size, value=uniform, **options: value)
        counts[sampling.sample(logits, params.temperature, params.top_k, params.top_p, None)] += 1
    found = speculative.restricted(logits, params)
    assert float(found.sum()) == pytest.approx(1)
    assert float((counts / points - found).abs().max()) < 1.5 / points


@pytest.mark.parametrize("params", KINDS, ids=repr)
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "given"])
def test_accepted_tokens_have_the_models_distribution(params: SamplingParams, drawn: bool) -> None:
    """First tokens over all draws, and second tokens given the first was accepted; the drafts' logits are others."""
    generator = torch.Generator().manual_seed(2)
    rows, drafting = torch.randn(3, 9, generator=generator) * 1.5, torch.randn(9, generator=generator) * 1.5
    first, second, runs = torch.zeros(9), torch.zeros(9), 3000
    for _ in range(runs):
        guessed = [speculative.guess(drafting, params, generator) for _ in range(2)]
        drafts = guessed if drawn else [Draft(draft.token) for draft in guessed]
        tokens = speculative.accept(rows, drafts, params, generator)
        assert tokens[:-1] == [draft.token for draft in drafts[: len(tokens) - 1]]
        first[tokens[0]] += 1
        if len(tokens) > 1:
            second[tokens[1]] += 1
    p, q = speculative.restricted(rows[0], params), speculative.restricted(drafting, params)
    assert chi_square(first, p) < 4 and chi_square(second, speculative.restricted(rows[1], params)) < 4
    if drawn:  # as many as the rule promises
        assert float(second.sum()) / runs == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.03)


def test_greedy_accepts_the_longest_prefix_that_agrees() -> None:
    rows = torch.eye(5)[[2, 4, 1]]
    for drafts, expected in (([2, 4], [2, 4, 1]), ([2, 3], [2, 4]), ([0, 4], [2]), ([2], [2, 4]), ([], [2])):
        found = speculative.accept(rows[: len(drafts) + 1], [Draft(d) for d in drafts], GREEDY, torch.Generator())
        assert found == expected


def test_drafts_never_reach_a_pages_end_nor_beyond_the_answer() -> None:
    def count(known: int, most: int = 3, prompt: int = 100, max_tokens: int = 1000) -> int:
        return draft_count(Request([5] * prompt, SamplingParams(), max_tokens, torch.Generator()), known, most)

    assert [count(known) for known in (251, 252, 253, 254, 255, 256, 257, 258)] == [3, 3, 2, 1, 0, 0, 1, 3]
    assert [count(known, max_tokens=8) for known in (104, 105, 106, 107, 108)] == [3, 2, 1, 0, 0]
    assert count(150, most=1) == 1 and count(150, most=0) == 0


class Traffic(Scenario):
    """Speculating with drafts that are right for two tokens of three."""

    def __init__(self, seed: int, tokens: int, **options: object):
        make = partial(OracleRunner, oracle=next_logits, tokens=tokens)
        super().__init__(seed, speculative_tokens=tokens, make_runner=make, **options)
        self.tokens = tokens

    def wrong(self) -> list[Request]:
        """A sampled request draws other numbers than without drafts, but the same ones whatever runs beside it."""
        alone = Engine(
            HashModel(), None, frozenset([END]), num_pages=20, max_running=1, prefix_caching=False,
            speculative_tokens=self.tokens,
            make_runner=partial(OracleRunner, oracle=next_logits, tokens=self.tokens),
        )  # fmt: skip
        found = []
        for request in self.done:
            if request.params.temperature == 0:
                count = len(request.output) if request.finish_reason == "abort" else request.max_tokens
                expected = answer(request.prompt, request.params, count)
            else:
                again = alone.make_request(request.prompt, dataclasses.replace(request.params))
                alone.submit(again)
                while not again.finish_reason:
                    alone.step()
                expected = again.output[: len(request.output)] if request.finish_reason == "abort" else again.output
            if expected != request.output:
                found.append(request)
        return found


@pytest.mark.parametrize(
    ("seed", "tokens", "options"),
    [
        (21, 3, SMALL),
        (22, 1, SMALL | {"window_pages": 4}),
        (23, 2, SMALL | {"chunk_tokens": 18}),
        (24, 3, SMALL | {"prefix_caching": False}),
        (25, 3, SMALL | {"window_pages": 12, "long": 0.5}),
        (26, 2, SMALL | {"num_pages": 4, "window_pages": 2}),
    ],
)
def test_traffic_with_drafts_says_what_it_says_without(seed: int, tokens: int, options: dict) -> None:
    scenario = Traffic(seed, tokens, **options)
    requests, aborts = (30, 0.003) if "long" in options else (50, 0.03)
    counters = scenario.run(requests, aborts=aborts)
    assert not scenario.wrong()
    assert counters.finished == requests and counters.pages_used == counters.window_pages_used == 0
    assert 0.3 * counters.drafted_tokens < counters.accepted_tokens < 0.95 * counters.drafted_tokens
    assert counters.draft_steps <= counters.drafted_tokens <= tokens * counters.draft_steps
    assert sum(request.accepted for request in scenario.done) <= counters.accepted_tokens
    if "long" in options:
        assert counters.preemptions > 3
    elif options.get("prefix_caching", True):
        assert counters.prefix_hit_tokens


def _keep_rejected(state: HashState, slot: int, positions: range, rows: object) -> None:
    pass


def test_rings_that_keep_rejected_drafts_change_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HashState, "put_ring_rows", _keep_rejected)
    scenario = Traffic(21, 3, **SMALL)
    scenario.run(10, aborts=0)
    assert scenario.wrong()


def test_a_step_stays_in_the_budget() -> None:
    scenario = Traffic(27, 3, **(SMALL | {"chunk_tokens": 24}))
    runner, seen = scenario.engine._runner, []
    compute = runner.compute
    runner.compute = lambda chunks: seen.append(sum(len(c.token_ids) for c in chunks)) or compute(chunks)  # type: ignore
    scenario.run(40)
    assert 12 < max(seen) <= 24
    with pytest.raises(ValueError, match="chunk_tokens is 23, expected at least 24"):
        Traffic(27, 3, **(SMALL | {"chunk_tokens": 23}))


def test_sampled_answers_have_the_models_distribution() -> None:
    """Joint frequencies of three tokens, the later two drafted, against the model's own probabilities."""
    prompt, params = [7, 30, 11], SamplingParams(max_tokens=3, temperature=2.0, top_k=3, ignore_eos=True)
    engine = Engine(
        HashModel(), None, frozenset([END]), num_pages=32, speculative_tokens=2,
        make_runner=partial(OracleRunner, oracle=lambda known: next_logits(known).roll(1), tokens=2, wrong=0.0),
    )  # fmt: skip
    drafting = next_logits(prompt)
    # drafts that overlap with the truth: of a model that is right about some tokens only
    engine._runner._oracle = lambda known: next_logits(known) + drafting.roll(3)  # type: ignore[attr-defined]
    requests = [
        engine.make_request(prompt, dataclasses.replace(params, seed=seed)) for seed in range(3000)
    ]
    for request in requests:
        engine.submit(request)
    while engine.busy:
        engine.step()
    found = Counter(tuple(request.output) for request in requests)
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        expected = {
            (*tokens, token): chance * float(p)
            for tokens, chance in expected.items()
            for token, p in enumerate(speculative.restricted(next_logits(prompt + list(tokens)), params))
            if p > 0
        }
    keys = list(expected)
    assert len(keys) == 27 and set(found) <= set(keys)
    counts = torch.tensor([float(found[key]) for key in keys], dtype=torch.float64)
    assert chi_square(counts, torch.tensor([expected[key] for key in keys], dtype=torch.float64)) < 4
    counters = engine.counters
    assert 0.1 * counters.drafted_tokens < counters.accepted_tokens < 0.9 * counters.drafted_tokens


# --- the real model, its random MTP layer


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
    runner, turn = llm.engine._runner, itertools.count()
    propose = runner.propose

    def better(work: object, chunks: object, found: dict[Request, list[int]]) -> None:
        propose(work, chunks, found)  # type: ignore[arg-type]
        for request, tokens in found.items():
            place, answer = len(request.output) + len(tokens), truth.get(tuple(request.prompt), [])
            for index in range(min(len(request.drafts), len(answer) - place)):
                if next(turn) % 6:
                    request.drafts[index] = Draft(answer[place + index])

    monkeypatch.setattr(runner, "propose", better)


PROMPTS = [prompt(n, n) for n in (1, 300, 5, 245, 65, 118, 260)]


def test_greedy_answers_are_the_same(monkeypatch: pytest.MonkeyPatch, plain: LLM, drafting: LLM) -> None:
    """Alone with MTP's random drafts, of which few are right, and with drafts of which most are; over block and page
    ends, with and without logprobs.
    """
    params = dataclasses.replace(GREEDY, logprobs=2)
    expected = plain.generate(PROMPTS, params)
    unaided = drafting.generate(PROMPTS[3:6], GREEDY)
    drafting.engine.forget_prefixes()
    help_along(monkeypatch, drafting, {tuple(p): d.token_ids for p, d in zip(PROMPTS, expected, strict=True)})
    before = drafting.engine.counters
    found = drafting.generate(PROMPTS, params)
    assert [done.token_ids for done in unaided] == [done.token_ids for done in expected[3:6]]
    assert [done.token_ids for done in found] == [done.token_ids for done in expected]
    for mine, other in zip(found, expected, strict=True):
        for a, b in zip(mine.logprobs or (), other.logprobs or (), strict=True):
            assert a == pytest.approx(b, abs=0.02)
    counters = drafting.engine.counters
    accepted = counters.accepted_tokens - before.accepted_tokens
    assert accepted == sum(done.accepted_tokens for done in found) > 60
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
    """Every record up to the newest, MTP's too, and every ring row, against one pass over the same tokens; positions
    behind have been written by drafts.
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
                close(getattr(mine, name)[request.state_slot], getattr(other, name)[request.state_slot])


def places(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> torch.Tensor:
    """Where each sampled token lies in its distribution, likeliest first: even over (0, 1) if it was drawn from it."""
    found, generator = [], torch.Generator().manual_seed(9)
    for ids, own, done in zip(prompts, params, llm.generate(prompts, params), strict=True):
        logits = llm.logits(ids + done.token_ids[:-1])[len(ids) - 1 :]
        for row, token in zip(logits, done.token_ids, strict=True):
            p = speculative.restricted(row, own)
            order = p.argsort(descending=True)
            rank = int((order == token).nonzero())
            found.append(float(p[order[:rank]].sum() + p[token] * torch.rand((), generator=generator)))
    return torch.tensor(found)


def test_tokens_sampled_with_mtp_are_drawn_from_the_model(monkeypatch: pytest.MonkeyPatch, drafting: LLM) -> None:
    prompts = [prompt(4 + i % 7, i) for i in range(48)]
    params = [SamplingParams(max_tokens=16, temperature=1.5, seed=i, ignore_eos=True) for i in range(48)]
    before = drafting.engine.counters

    def deviation() -> float:
        counts = torch.histc(places(drafting, prompts, params), 8, 0, 1).double()
        return chi_square(counts, torch.full((8,), 1 / 8, dtype=torch.float64))

    assert deviation() < 4
    counters = drafting.engine.counters
    assert counters.accepted_tokens - before.accepted_tokens > 20
    # the test sees a rule that takes every draft
    monkeypatch.setattr(speculative, "_token", lambda row, draft, params, generator: draft.token)
    assert deviation() > 10


def test_an_answer_ends_within_accepted_drafts(monkeypatch: pytest.MonkeyPatch, plain: LLM, drafting: LLM) -> None:
    """At the end token, at a stop string, at max_tokens; nothing behind is shown, and streams add up."""
    ids = prompt(30, 8)
    (free,) = plain.generate([ids], GREEDY)
    help_along(monkeypatch, drafting, {tuple(ids): free.token_ids})
    for count in range(1, 9):
        (done,) = drafting.generate([ids], dataclasses.replace(GREEDY, max_tokens=count, logprobs=1))
        assert done.token_ids == free.token_ids[:count] and len(done.logprobs or ()) == count
    deltas = list(drafting.stream(ids, GREEDY))
    assert [token for delta in deltas for token in delta.token_ids] == free.token_ids
    assert "".join(delta.text for delta in deltas) == free.text and len(deltas) < 20
    stopping = dataclasses.replace(GREEDY, ignore_eos=False, logprobs=1)
    for end in set(free.token_ids[2:9]):
        for llm in (plain, drafting):
            monkeypatch.setattr(llm.engine, "_eos_ids", frozenset([end]))
        (ended,) = drafting.generate([ids], stopping)
        assert ended == plain.generate([ids], stopping)[0] and ended.finish_reason == "stop"


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
    prompts, params = ["15 + 27 =", "Once upon a time"], SamplingParams(max_tokens=20, ignore_eos=True)
    plain, found = (LLM(progress=False, speculative_tokens=n).generate(prompts, params) for n in (0, 2))
    assert plain == found
    assert all(done.drafted_tokens >= 20 for done in found)


def test_misuse_is_refused(folder: Path) -> None:
    for value in (4, -1, True, "2"):
        with pytest.raises(ValueError, match="speculative_tokens is .*, expected 0 to 3"):
            LLM(folder, progress=False, speculative_tokens=value)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="speculative_tokens is 1 on device 'cuda'"):
        LLM(folder, progress=False, speculative_tokens=1, device="cuda")
    with pytest.raises(ValueError, match="chunk_tokens is 100, expected at least 128: .* may need 4 tokens"):
        LLM(folder, progress=False, speculative_tokens=3, chunk_tokens=100)
