"""Drafts change how many steps an answer takes, never the answer: the rule, and traffic over a fake model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial

import pytest
import torch

from fakes.drafting import OracleRunner
from fakes.hash_model import END, RINGS, HashModel, answer, next_logits
from fakes.scenario import SMALL, Scenario
from fakes.statistics import chi_square
from wellhead.engine import speculative
from wellhead.engine.core import Engine
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.speculative import Draft, draft_count
from wellhead.ops.sampling import reference as sampling

GREEDY = SamplingParams()
KINDS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=4),
    SamplingParams(temperature=1.5, top_p=0.6),
    SamplingParams(temperature=1.2, top_k=7, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=1),
]


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


@pytest.mark.parametrize("temperature", [1e-6, 1e-300, 1e-320])
def test_the_coldest_draw_is_the_best_token(temperature: float) -> None:
    logits, params = torch.tensor([1.0, 5.0, -torch.inf, 3.0, -2.0]), SamplingParams(temperature=temperature)
    assert sampling.sample(logits, temperature, 0, 1.0, torch.Generator()) == 1
    assert speculative.restricted(logits, params).tolist() == [0, 1, 0, 0, 0]


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


def test_drafts_that_nobody_drew_leave_the_draws_as_they_are() -> None:
    params, rows = SamplingParams(temperature=1.0), torch.randn(3, 9, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(7)
    alone = [sampling.sample(row, 1.0, 0, 1.0, generator) for row in rows]
    for right in range(3):
        drafts = [Draft(token) for token in [*alone[:right], (alone[right] + 1) % 9, 5][:2]]
        found = speculative.accept(rows, drafts, params, torch.Generator().manual_seed(7))
        assert found == alone[: right + 1]


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
    requests, aborts = (20, 0.003) if "long" in options else (50, 0.03)
    counters = scenario.run(requests, aborts=aborts)
    assert not scenario.wrong()
    assert counters.finished == requests and counters.pages_used == counters.window_pages_used == 0
    assert 0.3 * counters.drafted_tokens < counters.accepted_tokens < 0.95 * counters.drafted_tokens
    assert counters.draft_steps <= counters.drafted_tokens <= tokens * counters.draft_steps
    assert sum(request.accepted for request in scenario.done) <= counters.accepted_tokens
    if "long" in options:
        assert counters.preemptions
    elif options.get("prefix_caching", True):
        assert counters.prefix_hit_tokens


@pytest.mark.parametrize(("ratio", "rows"), [(4, 8), (128, 128)])
def test_rings_without_room_for_drafts_change_an_answer(
    monkeypatch: pytest.MonkeyPatch, ratio: int, rows: int
) -> None:
    monkeypatch.setitem(RINGS, ratio, rows)
    for seed in range(22, 42):  # which traffic meets it is chance; with 128 rows few does
        scenario = Traffic(seed, 3, **SMALL)
        scenario.run(6 if ratio == 4 else 40, aborts=0)
        if scenario.wrong():
            return
    pytest.fail("nothing was wrong")


def test_a_step_stays_in_the_budget() -> None:
    scenario = Traffic(27, 3, **(SMALL | {"chunk_tokens": 24}))
    runner, seen = scenario.engine._runner, []
    compute = runner.compute
    runner.compute = lambda chunks, rows: seen.append(sum(len(c.token_ids) for c in chunks)) or compute(chunks)  # type: ignore
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
    requests = [engine.make_request(prompt, dataclasses.replace(params, seed=seed)) for seed in range(2000)]
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
