"""The steps of a card, in torch on the CPU: with drafts, launched ahead or in turn, they say what is said without."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from engine.test_overlap import launches
from fakes.following import PlaceSampler
from wellhead.dispatch.spec import REFERENCE
from wellhead.engine.core import Engine
from wellhead.engine.device_runner import DeviceRunner
from wellhead.engine.device_speculative_runner import DeviceSpeculativeRunner
from wellhead.engine.sampling_params import SamplingParams
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.device_model import DeviceModel
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.stream import load_device_weights

pytest.importorskip("triton")
LENGTHS = (3, 70, 118, 124)  # the last ones over a block of 128


@pytest.fixture(scope="module")
def model() -> DeviceModel:
    checkpoint = open_checkpoint(resolve_model())
    weights, _ = load_device_weights(checkpoint, WHOLE, "cpu", with_mtp=True)
    return DeviceModel(weights, checkpoint.config, Numerics.named("checkpoint"), impl=REFERENCE)


def answers(model: DeviceModel, drafts: int, *, overlap: bool) -> tuple[list[list[int]], int, int]:
    """Every second request draws; (answers, chunks launched ahead, drafts accepted)."""
    given: dict[str, Any] = {"chunk_tokens": 128, "context": 512, "captured": False}
    made = partial(DeviceRunner, **given)
    if drafts:
        made = partial(DeviceSpeculativeRunner, **given, speculative_tokens=drafts)
    engine = Engine(
        model, None, frozenset(), max_running=4, chunk_tokens=128, num_pages=8, make_runner=made, overlap=overlap,
        speculative_tokens=drafts, context_length=512,
    )  # fmt: skip
    engine._runner.sampler = PlaceSampler()  # type: ignore[assignment]
    seen, requests = launches(engine), []
    for number, length in enumerate(LENGTHS):
        prompt = torch.randint(3, 3000, (length,), generator=torch.Generator().manual_seed(number)).tolist()
        params = SamplingParams(
            max_tokens=20 + 3 * number, ignore_eos=True, temperature=0.2 * (number % 2), seed=number
        )
        requests.append(engine.make_request(prompt, params))
        engine.submit(requests[-1])
    while engine.busy:
        engine.step()
    engine.check()
    ahead = sum(item.ahead > 0 for work in seen for item in work)
    return [request.output for request in requests], ahead, sum(request.accepted for request in requests)


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_drafts_taken_on_the_card_change_no_answer(model: DeviceModel, drafts: int) -> None:
    wanted, _, _ = answers(model, 0, overlap=False)
    in_turn, none, accepted = answers(model, drafts, overlap=False)
    overlapped, ahead, also = answers(model, drafts, overlap=True)
    assert in_turn == overlapped == wanted
    assert not none and ahead > 20 and accepted == also and (also > 0) == (drafts > 0)
