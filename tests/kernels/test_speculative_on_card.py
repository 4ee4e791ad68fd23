"""On a card: speculative decoding, captured, says what decoding says without it; sampled tokens are the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fakes.drafting import helped
from fakes.statistics import chi_square, places
from wellhead import LLM, SamplingParams
from wellhead.evals.against import judge_by
from wellhead.testing.ties import Tally

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)
QUESTIONS = [f"{a} + {b} =" for a in range(3, 60, 4) for b in (8, 41)] + ["The capital of France is", "One, two,"]


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
    """Equal, but for ties, which are printed; after one, the answers are two others."""
    tally = Tally()
    for prompt, mine, other in zip(prompts, found, wanted, strict=True):
        tally.add(judge_by(plain, prompt, mine, other), f"prompt of {len(prompt)} tokens")
    print(f"{len(tally.ties)} of {len(found)} answers part at a tie: {tally.ties}")
    assert not tally.wrong and len(tally.ties) <= len(found) // 4


def test_greedy_answers_with_wrong_and_with_right_drafts(plain: LLM, drafting: LLM) -> None:
    """Together, prompts in chunks beside decoding, over block and page ends, and once more from the prefix cache."""
    prompts = [plain.encode(question) for question in QUESTIONS]
    prompts += [ids(n, n) for n in (1, 2, 118, 125, 245, 260, 700)]
    wanted = [done.token_ids for done in plain.generate(prompts, GREEDY)]
    compare(plain, prompts, [done.token_ids for done in drafting.generate(prompts, GREEDY)], wanted)
    runner = drafting.engine._runner
    propose = runner.propose
    runner.propose = helped(  # type: ignore[method-assign]
        runner, {tuple(prompt): tokens for prompt, tokens in zip(prompts, wanted, strict=True)}
    )
    before = drafting.engine.counters
    params = [GREEDY] * len(prompts) + [replace(GREEDY, temperature=1.0)] * 8
    found = drafting.generate([*prompts, *prompts[:8]], params)
    runner.propose = propose  # type: ignore[method-assign]
    counters = drafting.engine.counters
    compare(plain, prompts, [done.token_ids for done in found[: len(prompts)]], wanted)
    right = counters.accepted_tokens - before.accepted_tokens, counters.drafted_tokens - before.drafted_tokens
    print(f"{right[0]} of {right[1]} drafts accepted")
    assert counters.prefix_hit_tokens > before.prefix_hit_tokens and right[0] > 0.4 * right[1]
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
    """On the card without drafts, on the host with them."""
    llm = LLM(device="cuda", progress=False, num_pages=64, max_running=24, chunk_tokens=300, speculative_tokens=guesses)
    prompts = [ids(4 + n % 7, n) for n in range(48)]
    for own in (SamplingParams(temperature=1.2), SamplingParams(temperature=1.0, top_k=40, top_p=0.9)):
        params = [replace(own, max_tokens=16, seed=seed, ignore_eos=True) for seed in range(48)]
        counts = torch.histc(places(llm, prompts, params), 8, 0, 1).double()
        assert chi_square(counts, torch.full((8,), 1 / 8, dtype=torch.float64)) < 4, own
    assert llm.engine.counters.accepted_tokens > 0 or not guesses


def test_a_greedy_step_reads_ids_alone(monkeypatch: pytest.MonkeyPatch, drafting: LLM, plain: LLM) -> None:
    """No row of logits travels to the host, with drafts or without."""
    copied: list[int] = []
    real = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor, *rest: object) -> torch.Tensor:
        copied.append(tensor.numel())
        return real(tensor, *rest)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    for llm in (plain, drafting):
        llm.generate(QUESTIONS[:5], GREEDY)
    assert not copied
    plain.generate(QUESTIONS[:1], replace(GREEDY, temperature=1.0, max_tokens=4))
    assert not copied
    plain.generate(QUESTIONS[:1], replace(GREEDY, logprobs=1, max_tokens=4))
    assert len(copied) == 4
