"""`bench step` on "meta": every launch of a step is made and counted, nothing is computed and no card is asked."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime import JITFunction

from wellhead.cli import bench_step as cli
from wellhead.dispatch import capability
from wellhead.model import device_model
from wellhead.model.device_layout import DeviceLayout
from wellhead.model.numerics import Numerics
from wellhead.model.split import Split
from wellhead.model.step_bytes import step_bytes
from wellhead.testing import bench_step, step_measured
from wellhead.testing.bench_step import POSITIONS, OneRank, StepBench
from wellhead.testing.step_profile import Launch
from wellhead.testing.step_whole import SITE, kinds
from wellhead.testing.timing import Roof

LAYERS, CONTEXT, DISTINCT = 5, 512, 20  # every kind of layer is among them
ROOF = Roof(1000.0, 2000.0)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that were launched; every step takes 2 ms, and as many experts are chosen as DISTINCT says."""
    names: list[str] = []

    def took(run: Any) -> float:
        run()
        return 2.0

    def profile(run: Any, prepare: Any) -> list[list[Launch]]:
        prepare(0)
        names.clear()
        run()
        return [[Launch(name, 10.0 * at, 10.0 * at + 10) for at, name in enumerate(names)]]

    def weights(config: Any, split: Any, device: str, *, with_mtp: bool) -> Any:
        return DeviceLayout.of(config, split, device).allocate(with_mtp)

    features = capability.features_of(capability.simulated("sm90"), "3.6.0")
    monkeypatch.setattr(device_model, "here", lambda: features)
    monkeypatch.setattr(JITFunction, "run", lambda self, *_, **__: names.append(self.__name__))
    for name, fake in (
        ("needed_card", lambda: SimpleNamespace(name="meta")), ("dummy_weights", weights), ("_took", took),
        ("_check", lambda logits: None), ("_distinct", lambda ids: DISTINCT + 0 * len(ids)),
    ):  # fmt: skip
        monkeypatch.setattr(bench_step, name, fake)
    monkeypatch.setattr(step_measured, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 3 * 10**9))
    yield names


def bench(drafts: int, batch: int) -> tuple[StepBench, bench_step.Measured]:
    made = StepBench("v4-flash", LAYERS, [batch], CONTEXT, drafts=drafts, device="meta")
    return made, made.decode(made.steps(captured=False), batch, ROOF, "eager")


@pytest.mark.parametrize(("drafts", "batch"), [(0, 2), (1, 2), (3, 1)])
def test_a_step_is_held_against_the_bytes_of_all_its_tokens(drafts: int, batch: int, launched: list[str]) -> None:
    made, found = bench(drafts, batch)
    record, tokens = found.profiled(), batch * (1 + drafts)
    assert launched.count(SITE) == 2 * LAYERS + 1  # verification alone is profiled
    assert (record["drafts"], record["batch"], record["tokens"]) == (drafts, batch, tokens)
    given = {"tokens": tokens, "requests": batch, "context": CONTEXT, "distinct": DISTINCT}
    own = DeviceLayout.of(made.config, made.split, "meta").allocate(False)
    numerics = Numerics.named("checkpoint")
    assert record["bytes"] == step_bytes(own, made.config, numerics, **given).total()  # type: ignore[arg-type]
    assert record["share"] == pytest.approx(record["bytes"] / 2e12 * 1e3 / 2.0, rel=1e-3)
    assert record["ms_mean"] == 2.0 and record.get("draft_ms") == (2.0 if drafts else None)
    assert record["whole_layers"] == 43 and record["whole_ms"] > 2.0 * 6 and record["whole_bytes"] > record["bytes"]
    assert bool(made.model.weights.mtp) == (drafts > 0)


def test_drafts_stay_in_the_context(monkeypatch: pytest.MonkeyPatch, launched: list[str]) -> None:
    """Also the ones that follow, at places that the pages of a request hold."""
    ends: list[int] = []
    load = bench_step.SpeculativeStep.load

    def loaded(step: Any, chunks: Any) -> Any:
        ends.extend(chunk.end for chunk in chunks)
        assert all(len(chunk.token_ids) == 4 and chunk.start >= 0 for chunk in chunks)
        return load(step, chunks)

    monkeypatch.setattr(bench_step.SpeculativeStep, "load", loaded)
    bench(3, 1)
    assert sorted(set(ends)) == list(range(CONTEXT - 2 - POSITIONS, CONTEXT - 2))
    with pytest.raises(ValueError, match=r"context is 134, expected 135 to 1048576 tokens"):
        StepBench("v4-flash", LAYERS, [1], 134, drafts=3, device="meta")


def test_steps_may_be_planned_for_more_tokens_than_requests_have(launched: list[str]) -> None:
    """The same bytes; index logits of a million tokens are chosen from in more launches."""
    short = bench(0, 2)[1].profiled()
    made = StepBench("v4-flash", LAYERS, [2], CONTEXT, limit=1 << 20, device="meta")
    long = made.decode(made.steps(captured=False), 2, ROOF, "eager").profiled()
    assert (short["limit"], long["limit"]) == (CONTEXT, 1 << 20) and long["context"] == short["context"] == CONTEXT
    assert long["bytes"] == short["bytes"] and long["planned_gb"] > short["planned_gb"]
    assert long["ops"]["topk"]["launches"] == short["ops"]["topk"]["launches"], "short requests have steps of their own"
    with pytest.raises(ValueError, match="limit is 256, expected the context's 512 to 1048576 tokens"):
        StepBench("v4-flash", LAYERS, [2], CONTEXT, limit=256, device="meta")


def test_people_are_told_of_drafts(launched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.tell(bench(3, 2)[1].profiled())
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert ", batch 2 of 4 tokens each, context 512, eager: 2.000 ms" in first and "4000.0 tokens/s verified" in first
    assert second == "  the next 3 drafts, by the MTP module over all those tokens: 2.000 ms"
    cli.tell(bench(0, 2)[1].profiled())
    said = capsys.readouterr().out
    assert ", batch 2, context 512" in said and "drafts" not in said and "verified" not in said


def test_one_rank_is_timed_alone_launch_by_launch(launched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Half the heads and expert width, no sum, and logits of the whole vocabulary's size."""
    split = Split(0, 2)
    made = StepBench("v4-flash", LAYERS, [2], CONTEXT, split=split, group=OneRank(2), device="meta")
    found = made.decode(made.steps(captured=False), 2, ROOF, "eager")
    record = found.profiled(launches=kinds(made.config))
    whole = bench(0, 2)[1].profiled()
    assert record["alone"] and record["tp"] == 2 and "alone" not in whole and "timeline" not in whole
    assert 0.4 * whole["bytes"] < record["bytes"] < 0.7 * whole["bytes"]
    assert set(record["timeline"]) == {
        "ratio 0, experts by token id", "ratio 4, experts by token id", "ratio 128, experts by score",
        "ratio 4, experts by score",
    }  # fmt: skip
    assert "gate_up_kernel" in [name for name, *_ in record["timeline"]["ratio 4, experts by score"]]
    cli.tell(record)
    said = capsys.readouterr().out
    assert "tp 2 (one rank alone), batch 2" in said and "  ratio 128, experts by score: " in said
