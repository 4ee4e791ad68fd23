"""`--mem-fraction` on its way: from the command to the planner, and the planner's pages to the engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wellhead.cli import main
from wellhead.dispatch import capability
from wellhead.engine import llm as door
from wellhead.engine.device_runner import ladder
from wellhead.engine.llm import LLM
from wellhead.engine.loading import pages_within
from wellhead.engine.story import untold
from wellhead.model import device_model
from wellhead.model.choices import choose_ops
from wellhead.model.config_file import load_config
from wellhead.model.locate import resolve_model
from wellhead.model.memory_plan import OutOfMemory, plan_memory
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.working_memory import Steps
from wellhead.ops.moe import api as moe

pytest.importorskip("triton")
TOTAL = 8_000_000_000
FEATURES = capability.features_of(capability.simulated("sm90"), "3.6.0")
CHECKPOINT = Numerics.named("checkpoint")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card of 8 GB of which `free` are free."""
    found = SimpleNamespace(free=TOTAL - 600_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found.free, TOTAL))
    monkeypatch.setattr(device_model, "here", lambda: FEATURES)
    monkeypatch.setattr(moe.card, "has", lambda feature: FEATURES[feature].present)
    return found


def planned(fraction: float, **more: Any) -> tuple[int, int]:
    config = load_config(resolve_model())
    steps = Steps(2048, tuple(ladder(32)), config.max_position_embeddings, **more)
    choices = choose_ops(config, WHOLE, FEATURES)
    plan = plan_memory(config, CHECKPOINT, WHOLE, int(TOTAL * fraction), steps, choices, slots=32)
    return plan.pages, plan.window_pages


def pages(fraction: float, **more: Any) -> tuple[int, int]:
    config = load_config(resolve_model())
    given: dict[str, Any] = {"num_pages": None, "slots": 32, "chunk_tokens": 2048, **more}
    return pages_within(fraction, config, CHECKPOINT, WHOLE, "cuda:0", **given)


def test_a_fraction_is_the_planners_pages(card: SimpleNamespace) -> None:
    assert pages(0.5) == planned(0.5) > (1000, 100)
    assert pages(0.9) == planned(0.9) and pages(0.9)[0] > 1.5 * pages(0.5)[0]
    assert pages(0.5, speculative_tokens=3) == planned(0.5, drafts=3) < pages(0.5)
    assert pages(0.5, context_length=4096) > pages(0.5)  # index scores of shorter contexts take less


def test_fractions_that_mean_nothing(card: SimpleNamespace) -> None:
    for fraction in (0.0, -1.0, 1.01):
        with pytest.raises(ValueError, match="expected a number above 0 and at most 1"):
            pages(fraction)
    with pytest.raises(ValueError, match="num_pages 7; give one of them"):
        pages(0.5, num_pages=7)
    with pytest.raises(OutOfMemory, match="too few for one page"):
        pages(0.1)


def test_memory_that_others_hold_is_named_before_loading(card: SimpleNamespace) -> None:
    card.free = 2_000_000_000
    with pytest.raises(OutOfMemory, match=r"is 7\.20 GB, but 6\.00 of its 8\.00 GB are in use; end what holds them"):
        pages(0.9)


class Stopped(Exception):
    pass


def test_the_engine_gets_those_pages(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def engine(*words: Any, **options: Any) -> None:
        seen.update(options)
        raise Stopped

    monkeypatch.setattr(door, "load_with_runner", lambda *words, **options: (None, None))
    monkeypatch.setattr(door, "Engine", engine)
    with pytest.raises(Stopped):
        LLM(device="cuda", mem_fraction=0.5)
    assert (seen["num_pages"], seen["window_pages"]) == planned(0.5)
    with pytest.raises(Stopped):
        LLM(device="cuda", mem_fraction=0.5, window_pages=77)
    assert seen["window_pages"] == 77


@pytest.mark.parametrize(
    ("words", "fraction", "num_pages"),
    [
        (["--device", "cuda", "--mem-fraction", "0.7"], 0.7, None),
        (["--device", "cuda"], 0.9, None),
        (["--device", "cuda", "--num-pages", "9"], None, 9),
        ([], None, None),
    ],
)
def test_serve_passes_it_on(
    monkeypatch: pytest.MonkeyPatch, words: list[str], fraction: float | None, num_pages: int | None
) -> None:
    pytest.importorskip("fastapi")
    from wellhead.server import serving

    seen: dict[str, Any] = {}
    monkeypatch.setattr(door, "LLM", lambda model, **options: seen.update(options))
    monkeypatch.setattr(serving, "serve", lambda options, load: load(untold))
    assert main(["serve", *words]) == 0
    assert (seen["mem_fraction"], seen["num_pages"]) == (fraction, num_pages)


def test_serve_passes_its_sizes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag that SGLang's and vLLM's users know reaches what it is named for."""
    pytest.importorskip("fastapi")
    from wellhead.server import serving

    seen: dict[str, Any] = {}
    asked: list[Any] = []
    monkeypatch.setattr(door, "LLM", lambda model, **options: seen.update(options, model=model))
    monkeypatch.setattr(serving, "serve", lambda options, load: (asked.append(options), load(untold)))
    words = "--device cuda --context-length 4096 --max-running-requests 7 --cuda-graph-max-bs 4 --speculative-tokens 2"
    door_words = "--host 0.0.0.0 --port 9 --api-key k --served-model-name a --served-model-name b"
    assert main(["serve", "some/model", *words.split(), *door_words.split(), "--chunked-prefill-size", "256"]) == 0
    found = {name: seen[name] for name in ("context_length", "max_running", "largest_graph", "speculative_tokens")}
    assert found == {"context_length": 4096, "max_running": 7, "largest_graph": 4, "speculative_tokens": 2}
    assert seen["chunk_tokens"] == 256 and seen["model"] == "some/model" and seen["device"] == "cuda"
    options = asked[0]
    assert (options.host, options.port, options.key, options.names) == ("0.0.0.0", 9, "k", ["a", "b"])


@pytest.mark.parametrize("more", [{"largest_graph": 4}, {"largest_graph": 0, "device": "cuda"}])
def test_a_largest_graph_that_means_nothing(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected at least 1, on a card whose decodes are captured"):
        LLM(**more)
