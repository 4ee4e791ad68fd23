"""On a card: speculative decoding, captured, says what decoding says without it; sampled tokens are the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

from fakes.drafting import helped
from fakes.statistics import chi_square, places
from wellhead import LLM, SamplingParams
from wellhead.engine import device_runner
from wellhead.testing.ties import Tally, judge

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)
QUESTIONS = [f"{a} + {b} =" for a in range(3, 60, 4) for b in (8, 41)] + ["The capital of France is", "One, two,"]
TOGETHER = 24  # requests of the exact comparison


def ids(length: int, seed: int) -> list[int]:
    return torch.randint(3, 3000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def plain() -> LLM:
    return LLM(device="cuda", progress=False, num_pages=64, max_running=24, chunk_tokens=300)


@pytest.fixture(scope="module", params=[1, 3])
def drafting(request: pytest.FixtureRequest) -> LLM:
    return LLM(
        device="cuda", progress=False, num_pages=64, max_running=24, chunk_tokens=300, speculative_tokens=request.param
    )


def compare(plain: LLM, prompts: Sequence[list[int]], found: Sequence[list[int]], wanted: Sequence[list[int]]) -> None:
    """Equal, but for ties, which are printed; after one, the answers are two others. A step's size decides how sums are
    rounded and so, where two experts or index entries score alike, which is chosen, and another expert moves logits by
    half of their norm (docs/log.md): a tie in any of several chunks is one.
    """
    tally = Tally()
    for prompt, mine, other in zip(prompts, found, wanted, strict=True):
        verdicts = [judge(mine, other, partial(in_chunks, plain, prompt, other, size)) for size in (300, 128, 90, 64)]
        tally.add(min(verdicts, key=lambda verdict: verdict.margin), f"prompt of {len(prompt)} tokens")
    print(f"{len(tally.ties)} of {len(found)} answers part at a tie: {tally.ties}")
    assert not tally.wrong and len(tally.ties) <= len(found) // 4


def in_chunks(llm: LLM, prompt: Sequence[int], answer: Sequence[int], size: int, place: int) -> torch.Tensor:
    """Logits that choose the answer's token `place`."""
    ids = [*prompt, *answer[:place]]
    return llm.engine.logits(ids, [min(size, len(ids) - low) for low in range(0, len(ids), size)])[-1]


@pytest.mark.parametrize("guesses", [1, 3])
def test_drafts_change_no_token(guesses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token, 40 of them behind any prompt, over block and page ends: steps of either way have the same number
    of rows, prompts are one prefill, so a row's sums have one order, and nothing is left to call a tie.
    """

    def made(rows: int, speculative_tokens: int) -> LLM:
        monkeypatch.setattr(device_runner, "ladder", lambda most, largest_graph: [rows])
        return LLM(
            device="cuda", progress=False, num_pages=64, max_running=TOGETHER, chunk_tokens=2048, prefix_caching=False,
            speculative_tokens=speculative_tokens,
        )  # fmt: skip

    plain, drafting = made(TOGETHER * (1 + guesses), 0), made(TOGETHER, guesses)
    lengths = (2, 118, 125, 245, 260, 700)
    prompts = [plain.encode(question) for question in QUESTIONS[len(lengths) - TOGETHER :]]
    prompts += [ids(n, n) for n in lengths]
    wanted = [done.token_ids for done in plain.generate(prompts, GREEDY)]
    runner = drafting.engine._runner
    truth = {tuple(prompt): tokens for prompt, tokens in zip(prompts, wanted, strict=True)}
    for help_it in (False, True):
        before = drafting.engine.counters
        if help_it:
            monkeypatch.setattr(runner, "propose", helped(runner, truth))
        assert [done.token_ids for done in drafting.generate(prompts, GREEDY)] == wanted
        counters = drafting.engine.counters
        right, all_drafts = (
            getattr(counters, name) - getattr(before, name) for name in ("accepted_tokens", "drafted_tokens")
        )
        print(f"{right} of {all_drafts} drafts accepted")
        assert 0 < right < all_drafts
    assert right > 0.4 * all_drafts
    drafting.engine.check()


def test_greedy_answers_beside_prefills_and_from_the_prefix_cache(plain: LLM, drafting: LLM) -> None:
    """Steps of any size, prompts in chunks beside decoding; to the answers' ends, with sampled requests beside them."""
    greedy = SamplingParams(max_tokens=40)
    long = " ".join(f"{n} + {n + 1} = {2 * n + 1}" for n in range(30, 80)) + " "
    prompts = [plain.encode(question) for question in [*QUESTIONS, *(long + question for question in QUESTIONS[:8])]]
    wanted = [done.token_ids for done in plain.generate(prompts, greedy)]
    before = drafting.engine.counters
    compare(plain, prompts, [done.token_ids for done in drafting.generate(prompts, greedy)], wanted)
    params = [greedy] * len(prompts) + [replace(GREEDY, temperature=1.0)] * 8
    found = drafting.generate([*prompts, *prompts[:8]], params)
    compare(plain, prompts, [done.token_ids for done in found[: len(prompts)]], wanted)
    counters = drafting.engine.counters
    assert counters.prefix_hit_tokens > before.prefix_hit_tokens
    assert counters.accepted_tokens > before.accepted_tokens
    drafting.engine.check()


def test_preempted_requests_say_the_same(plain: LLM) -> None:
    small = LLM(device="cuda", progress=False, num_pages=5, max_running=4, chunk_tokens=300, speculative_tokens=3)
    prompts = [ids(246, 50 + n) for n in range(4)]
    wanted = [done.token_ids for done in plain.generate(prompts, GREEDY)]
    compare(plain, prompts, [done.token_ids for done in small.generate(prompts, GREEDY)], wanted)
    assert small.engine.counters.preemptions
    small.engine.check()


@pytest.mark.parametrize("guesses", [0, 2])
def test_sampled_tokens_are_drawn_from_the_model(guesses: int) -> None:
    """With drafts and without."""
    llm = LLM(device="cuda", progress=False, num_pages=64, max_running=24, chunk_tokens=300, speculative_tokens=guesses)
    prompts = [ids(4 + n % 7, n) for n in range(48)]
    for own in (SamplingParams(temperature=1.2), SamplingParams(temperature=1.0, top_k=40, top_p=0.9)):
        params = [replace(own, max_tokens=16, seed=seed, ignore_eos=True) for seed in range(48)]
        counts = torch.histc(places(llm, prompts, params), 8, 0, 1).double()
        assert chi_square(counts, torch.full((8,), 1 / 8, dtype=torch.float64)) < 4, own
    assert llm.engine.counters.accepted_tokens > 0 or not guesses


def test_a_step_reads_ids_alone(monkeypatch: pytest.MonkeyPatch, drafting: LLM, plain: LLM) -> None:
    """No row of logits travels to the host: greedy, sampled or reported, with drafts or without."""
    copied: list[int] = []
    real = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor, *rest: object) -> torch.Tensor:
        copied.append(tensor.numel())
        return real(tensor, *rest)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    for llm in (plain, drafting):
        llm.generate(QUESTIONS[:5], GREEDY)
        llm.generate(QUESTIONS[:5], replace(GREEDY, temperature=1.0, logprobs=1, max_tokens=8))
    assert not copied


def test_sampled_answers_are_those_without_drafts(drafting: LLM, plain: LLM) -> None:
    """A draw follows from seed and number of tokens alone; steps of other sizes round otherwise, which turns some."""
    params = [replace(GREEDY, temperature=1.5, seed=seed, max_tokens=6) for seed in range(24)]
    prompts = [QUESTIONS[seed % len(QUESTIONS)] for seed in range(24)]
    before = drafting.engine.counters.accepted_tokens
    answers = [[done.token_ids for done in llm.generate(prompts, params)] for llm in (plain, drafting)]
    assert sum(a == b for a, b in zip(*answers, strict=True)) >= 12
    assert drafting.engine.counters.accepted_tokens > before
