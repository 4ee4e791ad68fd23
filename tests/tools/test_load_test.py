"""The load test over the embedded checkpoint, small; and that it sees what it is there to see."""

from __future__ import annotations

import random

import pytest
import torch
from tools.load_test import Load, answers, prompts

from tools import load_test
from wellhead.engine.llm import LLM
from wellhead.engine.pages import IntegrityError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REQUESTS = 24


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LONGEST": 120, "MOST": 12, "SHORT": 0, "KEYS": load_test.KEYS[:60]}.items():
        monkeypatch.setattr(load_test, name, value)


@pytest.fixture
def load() -> Load:
    reference = LLM(progress=False, device=DEVICE, max_running=1, num_pages=4, prefix_caching=False)
    llm = LLM(progress=False, device=DEVICE, max_running=4, num_pages=9)
    dice = random.Random(1)
    asked = answers(reference, prompts(llm.encode, dice, 8), lambda count: None)
    assert len({tuple(prompt) for prompt, _ in asked}) == 8
    assert all(len(answer) == load_test.MOST for _, answer in asked)
    made = Load(llm, asked, dice, DEVICE)
    made.reference = reference  # type: ignore[attr-defined]
    return made


def run(load: Load) -> list[int]:
    ended: list[int] = []
    load.run(REQUESTS, 8, ended.append)
    return ended


def test_all_is_well_with_the_embedded_checkpoint(load: Load) -> None:
    assert sum(run(load)) == REQUESTS == load.agreed + len(load.different)
    tally = load.judged(load.reference)  # type: ignore[attr-defined]
    assert not tally.wrong and tally.agreed + len(tally.ties) == REQUESTS
    assert not load.failures()
    assert load.tokens > REQUESTS and set(load.first) == set(load.later) > set()


def test_a_wrong_token_is_no_tie(load: Load) -> None:
    for _, answer in load.asked:
        answer[0] = answer[0] % 3000 + 1
    run(load)
    tally = load.judged(load.reference)  # type: ignore[attr-defined]
    assert len(tally.wrong) > REQUESTS / 2
    assert all("differ at token 0, margin" in text for text in tally.wrong)


def test_a_lost_page_and_growing_memory_are_failures(load: Load) -> None:
    run(load)
    load.later["more"] = load.first.setdefault("more", 5) + 100
    load_test.GROWTH["more"] = 99
    try:
        assert load.failures() == ["more memory grew from 0.0 to 0.0 MB"]
    finally:
        del load_test.GROWTH["more"]
    load.engine._memory.pages.allocate(1)
    with pytest.raises(IntegrityError):
        load.failures()
    with pytest.raises(IntegrityError):
        run(load)
