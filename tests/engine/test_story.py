"""A start-up as it is told: every phase once, in order, a failed one too, and what is being done meanwhile."""

from __future__ import annotations

import io

import pytest

from wellhead.engine.llm import LLM
from wellhead.engine.story import Story, span


def test_the_phases_of_a_model_on_the_cpu() -> None:
    said = io.StringIO()
    story = Story(said)
    llm = LLM(phase=story.phase, progress=False, num_pages=2, max_running=2)
    assert list(story.seconds) == ["checking the checkpoint", "loading weights", "making caches"]
    assert [line[2:42].rstrip() for line in said.getvalue().splitlines()] == list(story.seconds)
    story.ready(llm.engine, "tiny", 1, "http://here")
    last = said.getvalue().splitlines()[-1]
    assert "tiny on 1 rank, 512 tokens in 2 pages" in last and "nothing to compile; ready after" in last
    assert story.doing == "ready"


def test_a_phase_that_fails_says_so_and_raises() -> None:
    said = io.StringIO()
    story = Story(said)
    with pytest.raises(ValueError, match="broken"), story.phase("loading weights"):
        assert story.doing == "loading weights"
        raise ValueError("broken")
    assert "loading weights" in said.getvalue() and "failed after" in said.getvalue() and story.seconds == {}


def test_spans() -> None:
    assert (span([4]), span([8, 1, 3])) == ("4", "1 to 8")
