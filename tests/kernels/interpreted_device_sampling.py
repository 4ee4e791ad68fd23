"""Tokens drawn on the card for requests. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from wellhead.engine.choice import Launched, choose, read
from wellhead.engine.device_sampling import DeviceSampler
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scheduler import Work
from wellhead.engine.scores import Scores
from wellhead.engine.speculative import Draft, restricted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCAB = 50
KINDS = [
    SamplingParams(temperature=1.0, top_k=10 * VOCAB, seed=1),
    SamplingParams(temperature=1.5, top_k=9, top_p=0.8, seed=2),
    SamplingParams(temperature=2.0, top_p=0.5, seed=3),
]


def request(params: SamplingParams, output: int = 0) -> Request:
    generator = torch.Generator().manual_seed(params.seed or 0)
    return Request([1], params, 100, generator, output=[7] * output)


def test_a_draw_is_of_its_request_alone_and_within_what_it_may_be() -> None:
    rows = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    sampler = DeviceSampler(8, VOCAB, torch.device(DEVICE))
    sampler.warm_up()
    alone, together = [], {}
    for place, params in enumerate(KINDS):
        one = request(params, place)
        logits = rows[place : place + 1].to(DEVICE)
        alone.append(int(sampler.draw(Scores.of(logits), {one: [0]})[0]))
        assert restricted(rows[place], params)[alone[-1]] > 0
        together[request(params, place)] = [place + 1]
    # the same rows in two parts, among greedy ones, in another order of rows
    parts = [rows[[5, 1, 0]].to(DEVICE), rows[[7, 2]].to(DEVICE)]
    at = [0, 2, 1, 4, 3]  # of: 5, 0, 1, 2, 7
    best = torch.cat(parts).argmax(-1)
    chosen = sampler.draw(Scores(parts, best, at), together)
    assert [int(chosen[at[token]]) for token, in together.values()] == alone
    assert [int(chosen[row]) for row in (0, 3)] == [int(best[row]) for row in (0, 3)]


def test_draws_follow_the_seed_and_the_number_of_tokens() -> None:
    cases = [(seed, count) for seed in (1, 2, 2**63 - 1, 1) for count in range(4)]
    logits, sampler = torch.zeros(len(cases), VOCAB, device=DEVICE), DeviceSampler(16, VOCAB, torch.device(DEVICE))
    sampler.warm_up()
    requests = {
        request(SamplingParams(temperature=1.0, seed=seed), count): [i] for i, (seed, count) in enumerate(cases)
    }
    draws = sampler.draw(Scores.of(logits), requests).tolist()
    assert len(set(draws[:12])) > 6 and draws[12:] == draws[:4]


def test_drafts_leave_the_draws_as_they_are() -> None:
    """A step that verifies drafts, right ones and wrong ones, gives what steps of one token draw."""
    rows = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(9))
    logits, sampler = rows.to(DEVICE), DeviceSampler(6, VOCAB, torch.device(DEVICE))
    sampler.warm_up()
    reporting = replace(KINDS[0], logprobs=2)
    alone = []
    for ahead in range(3):
        own = request(reporting, 4 + ahead)
        alone += ended([Work(own, 1, True)], Scores.of(logits[ahead : ahead + 1].clone()), sampler)[own]
    for right in range(3):
        one, other = request(reporting, 4), request(KINDS[1], 1)
        one.drafts = [Draft(token) for token in [*alone[:right], (alone[right] + 1) % VOCAB, 5][:2]]
        work = [Work(one, 1, True, drafts=2), Work(other, 1, True)]
        found = ended(work, Scores.of(logits[[0, 1, 2, 5]]), sampler)
        assert found[one] == alone[: right + 1] and len(found[other]) == 1
        assert [next(iter(each)) for each in one.logprobs] == found[one]


def ended(work: Sequence[Work], scores: Scores, sampler: DeviceSampler) -> dict[Request, list[int]]:
    return read(Launched.of(work, (), scores, choose(work, scores, sampler), None, leads=True))[0]


def test_draws_by_places_are_those_by_numbers_of_tokens() -> None:
    """Of steps whose drafts were accepted or not before anybody read it, beside a greedy request."""
    rows = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(5))
    logits, sampler = rows.to(DEVICE), DeviceSampler(6, VOCAB, torch.device(DEVICE))
    sampler.warm_up()
    one, other = request(KINDS[0], 4), request(KINDS[1], 9)  # rows 2 and 3 are a greedy one's
    other.prompt = [3] * 6
    spans = {one: [0, 1], other: [4, 5]}
    wanted = sampler.draw(Scores.of(logits), spans)
    places = torch.tensor([1 + 4 - 1, 5, 2, 3, 6 + 9 - 1, 15], device=DEVICE)
    one.output, other.output = one.output[:-3], other.output[:-1]  # the host has not read the last ones
    found = sampler.draw(replace(Scores.of(logits), positions=places), spans)
    assert found.equal(wanted) and not sampler.draw(Scores.of(logits), spans).equal(wanted)


def test_what_is_left_to_the_host() -> None:
    sampler = DeviceSampler(1, VOCAB, torch.device(DEVICE))
    drafting = request(KINDS[0])
    drafting.drafts = [Draft(3), Draft(3, torch.ones(VOCAB) / VOCAB)]
    assert not sampler.takes(drafting) and sampler.takes(request(KINDS[0]))
    drafting.drafts = [Draft(3)]
    assert sampler.takes(drafting)
    assert sampler.takes(request(SamplingParams(temperature=1.0, logprobs=1)))
    for params in (SamplingParams(), SamplingParams(temperature=1e-9)):
        assert not sampler.takes(request(params))
