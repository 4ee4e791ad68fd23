"""A request that adjusts its logits, and one that fails while its token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from wellhead.engine.adjust import biased, in_turn, penalised
from wellhead.engine.device_sampling import DeviceSampler
from wellhead.engine.drafting import BestDrafts
from wellhead.engine.llm import LLM
from wellhead.engine.orders import DraftOrders
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scheduler import Work
from wellhead.model.batch import Chunk

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)


def finish(llm: LLM, *requests) -> None:  # type: ignore[no-untyped-def]
    for request in requests:
        llm.engine.submit(request)
    while llm.engine.busy:
        llm.engine.step()
    llm.engine.check()


def test_what_they_compute() -> None:
    row = torch.tensor([1.0, 2.0, 3.0])
    assert biased({0: 5.0, 2: -1.0})(row, []).tolist() == [6.0, 2.0, 2.0]
    punish = penalised(0.5, 0.25)
    assert punish(row, []).tolist() == [1.0, 2.0, 3.0]
    assert punish(row, [2, 2]).tolist() == [1.0, 2.0, 2.0]  # 0.5 + 2 * 0.25
    assert punish(row, [2, 2, 0]).tolist() == [0.25, 2.0, 2.0]
    assert row.tolist() == [1.0, 2.0, 3.0]
    assert in_turn([]) is None
    both = in_turn([biased({1: 1.0}), biased({1: 2.0})])
    assert both is not None and both(row, []).tolist() == [1.0, 5.0, 3.0]


def test_an_adjusted_request_beside_others(llm: LLM) -> None:
    (alone,) = llm.generate([[5, 6, 7]], GREEDY)
    engine, told = llm.engine, []

    def adjust(row: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        told.append(list(output))
        return row.index_fill(0, torch.tensor([42]), torch.inf)

    plain = engine.make_request([5, 6, 7], GREEDY)
    bent = engine.make_request([5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True, logprobs=1), adjust)
    assert plain.greedy and not bent.greedy
    finish(llm, plain, bent)
    assert plain.output == alone.token_ids
    assert bent.output == [42] * 3 and told == [[], [42], [42, 42]]
    # what is reported is the model's own
    assert all(row[42] < 0 and max(row.values()) > row[42] for row in bent.logprobs)


@pytest.mark.parametrize("speculative", [0, 2])
def test_a_request_that_fails_leaves_the_others_as_they_were(folder: Path, llm: LLM, speculative: int) -> None:
    own = LLM(
        folder, progress=False, num_pages=6, max_running=4, chunk_tokens=64, speculative_tokens=speculative
    )  # fmt: skip
    expected = llm.generate([[5, 6, 7], [8, 9]], GREEDY)

    def adjust(row: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        if len(output) == 2:
            raise ArithmeticError("not this one")
        return row

    requests = [own.engine.make_request(ids, GREEDY) for ids in ([5, 6, 7], [8, 9])]
    bad = own.engine.make_request([1, 2, 3], GREEDY, adjust)
    finish(own, requests[0], bad, requests[1])
    assert [request.output for request in requests] == [done.token_ids for done in expected]
    assert bad.finish_reason == "error" and str(bad.error) == "not this one" and len(bad.output) == 2
    assert bad.drafted == 0  # guesses cannot be adjusted for tokens that are not there yet


def test_generate_raises_what_a_request_failed_of(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from wellhead.engine import speculative

    def broken(*args: object) -> list[int]:
        raise ArithmeticError("no token")

    monkeypatch.setattr(speculative, "accept_best", broken)
    with pytest.raises(ArithmeticError, match="no token"):
        llm.generate([[5, 6, 7]], GREEDY)
    with pytest.raises(ArithmeticError, match="no token"):
        list(llm.stream([5, 6, 7], GREEDY))
    llm.engine.check()
    assert not llm.engine.busy


def test_guesses_of_a_device_pass_a_failed_request_by() -> None:
    """The card guesses for every request of the step, the host leaves none with one that failed or adjusts."""
    params, generator = SamplingParams(max_tokens=20), torch.Generator()
    good, failed, bent = (
        Request([5, 6, 7], params, 20, generator, adjust) for adjust in (None, None, biased({1: 1.0}))
    )
    failed.error = ArithmeticError("no token")
    work = [Work(request, 3, samples=True) for request in (good, failed, bent)]
    chunks = [Chunk([5, 6, 7], 0, [page], page) for page in range(3)]
    for request in (good, bent):
        request.output.append(9)
    made = torch.tensor([[1, 2], [3, 4], [5, 6]])
    asked = []

    def draft(orders: DraftOrders) -> torch.Tensor:
        asked.append(list(orders.following))
        return made

    for given in (made, None):
        BestDrafts(2).propose(draft, work, chunks, {good: [8], bent: [8]}, given)
        assert [[draft.token for draft in request.drafts] for request in (good, failed, bent)] == [[1, 2], [], []]
    assert asked == [[6, 7, 8, 6, 7, 0, 6, 7, 8]]


def test_the_card_draws_for_who_adjusts_nothing() -> None:
    sampled = SamplingParams(temperature=0.7)
    sampler = DeviceSampler.__new__(DeviceSampler)
    generator = torch.Generator()
    assert sampler.takes(Request([5], sampled, 5, generator))
    assert not sampler.takes(Request([5], sampled, 5, generator, biased({1: 1.0})))
