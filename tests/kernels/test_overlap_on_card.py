"""On a card: steps launched before the tokens of the one in front are read say what steps in turn say."""

from __future__ import annotations

import pytest
import torch

from wellhead import LLM, SamplingParams
from wellhead.engine import device_runner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

ROWS = 24


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 3000, (20 + 11 * i,), generator=generator).tolist() for i in range(ROWS)]


@pytest.mark.parametrize(("captured", "drafts"), [(True, 0), (False, 0), (True, 3)])
def test_overlap_changes_no_token(captured: bool, drafts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token, over block and page ends, answers of many lengths, greedy and drawn, with drafts or without:
    decodes have one number of rows, whoever is left, so a row's sums have one order.
    """
    monkeypatch.setattr(device_runner, "ladder", lambda most, largest_graph: [ROWS])
    kinds: list[dict[str, float]] = [
        {}, {"temperature": 0.8}, {"temperature": 1.1, "top_p": 0.9}, {"temperature": 0.9, "top_k": 20, "top_p": 0.8}
    ]  # fmt: skip
    asked = [
        SamplingParams(max_tokens=40 + 12 * i, ignore_eos=True, seed=i, **kinds[i % 4])  # type: ignore[arg-type]
        for i in range(ROWS)
    ]
    found = []
    for overlap in (False, True):
        llm = LLM(
            device="cuda", progress=False, num_pages=96, max_running=ROWS, chunk_tokens=8192, overlap=overlap,
            prefix_caching=False, captured=captured, speculative_tokens=drafts,
        )  # fmt: skip
        launch, ahead = llm.engine._runner.launch, []

        def spy(work, launch=launch, ahead=ahead):  # type: ignore[no-untyped-def]
            ahead.append(any(item.ahead for item in work))
            return launch(work)

        llm.engine._runner.launch = spy  # type: ignore[method-assign]
        found.append([one.token_ids for one in llm.generate(prompts(), asked)])
        llm.engine.check()
        assert (sum(ahead) > (30 if drafts else 300)) == overlap
        del llm
    assert found[0] == found[1]


def test_who_adjusts_or_reports_is_answered_beside_the_others() -> None:
    """Steps go over from one way to the other and back as such requests come and go."""
    llm = LLM(device="cuda", progress=False, num_pages=96, max_running=8)
    engine = llm.engine
    plain = SamplingParams(max_tokens=48, ignore_eos=True)
    reporting = SamplingParams(max_tokens=9, ignore_eos=True, logprobs=2)
    asked = prompts()[:3]
    wanted = [llm.generate([prompt], plain)[0].token_ids for prompt in asked]
    requests = [engine.make_request(prompt, plain) for prompt in asked]
    for number, request in enumerate(requests):
        engine.submit(request)
        for _ in range(7):
            engine.step()
        engine.submit(engine.make_request(asked[number], reporting))
    while engine.busy:
        engine.step()
    engine.check()
    agreed = sum(request.output == tokens for request, tokens in zip(requests, wanted, strict=True))
    assert agreed >= 2, "batches of other sizes may part at a tie, most do not"
