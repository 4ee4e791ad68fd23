"""What a step's launches are made of, and the picture of it, without a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wellhead.model.config_file import load_config
from wellhead.model.device_layout import DeviceLayout
from wellhead.model.device_weights import nbytes
from wellhead.model.numerics import Numerics
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.step_bytes import EMBEDDING, op_of, step_bytes
from wellhead.ops import registry
from wellhead.testing import scaling_picture, step_profile
from wellhead.testing.step_launches import by_kind, tell
from wellhead.testing.step_picture import REST, _parts, draw
from wellhead.testing.step_profile import OTHERS, SUMS, Launch, by_op
from wellhead.testing.step_whole import SITE, halves, kinds, whole_step

CONFIG = load_config(first_layers(published_config("v4-flash"), 4))


def test_every_kernel_belongs_to_one_op() -> None:
    assert step_profile.op_of("gate_up_kernel") == "moe"
    assert step_profile.op_of("fp8_gemv_kernel") == "linear" and step_profile.op_of("bf16_gemv_kernel") == "bf16_linear"
    assert step_profile.op_of("ncclDevKernel_AllReduce_Sum_bf16_RING_LL") == SUMS
    assert step_profile.op_of("peer_sum_kernel") == SUMS
    assert step_profile.op_of("void at::native::vectorized_elementwise_kernel") == OTHERS
    assert set(step_profile._kernels().values()) == {spec.name for spec in registry.specs()}


def test_each_run_is_prepared_outside_of_what_is_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    card, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    seen: list[SimpleNamespace] = []
    prepared: list[int] = []
    lost: list[int] = []

    def event(name: str, start: float, device: object = card) -> None:
        seen.append(SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=9.0)))

    @contextmanager
    def profiler(**_: object) -> Iterator[SimpleNamespace]:
        seen.clear()
        yield SimpleNamespace(events=lambda: seen)

    def prepare(number: int) -> None:
        event("copy", 0.0)
        prepared.append(number)

    def run() -> None:
        event("second", 2.0)
        event("graph launch", 0.0, host)
        if prepared[-1] not in lost:
            event(f"first {prepared[-1]}", 1.0)

    monkeypatch.setattr(torch.profiler, "profile", profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = step_profile.profile(run, prepare)
    assert prepared == [0, 1, 2, 3]
    assert [[launch.name for launch in one] for one in found] == [[f"first {n}", "second"] for n in prepared]
    lost.append(2)
    with pytest.raises(ValueError, match="2, 2, 1, 2 launches in 4 runs of one step; the profiler lost some"):
        step_profile.profile(run, prepare)


def test_parts_add_up_and_what_hides_behind_another_has_none() -> None:
    run = [
        Launch("project_kernel", 10.0, 20.0), Launch("route", 12.0, 15.0), Launch("fp8_gemv_kernel", 14.0, 32.0),
        Launch("gate_up_kernel", 35.0, 41.0), Launch("fp8_gemv_kernel", 36.0, 40.0),
    ]  # fmt: skip
    found = by_op([run, run])
    assert {op: (of.launches, of.us) for op, of in found.items()} == {
        "linear": (2, 12.0), "hyper_connection": (1, 10.0), "moe": (1, 9.0), "routing": (1, 0.0)
    }  # fmt: skip
    assert list(found) == ["linear", "hyper_connection", "moe", "routing"]
    assert sum(of.us for of in found.values()) == 41.0 - 10.0


def test_bytes_by_op_are_all_bytes_once() -> None:
    weights = DeviceLayout.of(CONFIG, Split(), "meta").allocate(False)
    many = step_bytes(weights, CONFIG, Numerics.named("checkpoint"), tokens=10_000, requests=1, context=10_000)
    tables = sum(layer.moe.table.nbytes for layer in weights.layers if layer.moe.table is not None)
    read = sum(many.values()) - many[EMBEDDING] - many["indexer"]
    caches = 584 * sum(10_000 + (10_000 // layer.ratio if layer.ratio else 0) for layer in weights.layers)
    assert read - caches == pytest.approx(nbytes(weights.layers) + nbytes(weights.head) - tables, rel=1e-6)
    assert {op for op in many if op != EMBEDDING} <= {spec.name for spec in registry.specs()}
    assert op_of("3.moe.experts.s13") == "moe" and op_of("attention.wo_a.scale") == "output_projection"
    one, four = (
        step_bytes(weights, CONFIG, Numerics.named("checkpoint"), tokens=tokens, requests=1, context=10_000)
        for tokens in (1, 4)
    )
    selecting = sum(layer.ratio == 4 for layer in weights.layers)
    assert four["sparse_mla"] - one["sparse_mla"] == 584 * 3 * (len(weights.layers) + selecting * CONFIG.index_topk)
    assert one["moe"] == pytest.approx(sum(nbytes(layer.moe.experts) for layer in weights.layers) * 6 / 256, rel=1e-6)


def test_a_whole_model_is_made_of_the_kinds_that_were_timed() -> None:
    """Attention 3 or 5 us, experts 10 or 20, 7 outside: three layers measured, five wanted."""
    measured = [(0, True), (4, False), (4, False)]
    run, at = [Launch("embed", 0.0, 1.0)], 2.0
    for took in (3.0, 10.0, 5.0, 20.0, 5.0, 20.0):
        run += [Launch(SITE, at, at + 0.5), Launch("gate_up_kernel", at + 0.5, at + took)]
        at += took
    run += [Launch(SITE, at, at + 4.0), Launch("pick", at + 4.0, at + 5.0)]
    outside, attention, experts = halves(run, 3)
    assert (outside, attention, experts) == (7.0, [3.0, 5.0, 5.0], [10.0, 20.0, 20.0])
    wanted = [*measured, (4, False), (0, False)]
    assert whole_step([run, run], 0.14, measured, wanted) == pytest.approx(0.14 * (70 + 25 + 23) / 70)
    assert kinds(CONFIG) == [(0, True), (0, True), (4, True), (128, False)]
    with pytest.raises(ValueError, match="7 launches of project_kernel, expected two a layer of 4"):
        halves(run, 4)


def test_a_layers_launches_are_those_of_its_kind_in_their_usual_order() -> None:
    """Two layers of one kind, a hyper-connection first; a launch on another stream begins before or behind another."""
    run, at = [Launch("embed", 0.0, 1.0)], 1.0
    for turned in (False, False, True):
        beside = [Launch("route", at + 3.0, at + 5.0), Launch("w13", at + 3.5, at + 8.0)]
        run += [Launch(SITE, at, at + 3.0), *(reversed(beside) if turned else beside)]
        run += [Launch(SITE, at + 8.0, at + 9.0), Launch("down", at + 9.0, at + 11.0)]
        at += 11.0
    run += [Launch(SITE, at, at + 4.0)]
    found = by_kind([run], [(4, False)] * 3)
    assert found == {
        "ratio 4, experts by score": [
            (SITE, 0.0, 3.0, 3.0), ("route", 3.0, 2.0, 2.0), ("w13", 3.5, 4.5, 3.0), (SITE, 8.0, 1.0, 1.0),
            ("down", 9.0, 2.0, 2.0),
        ]
    }  # fmt: skip
    first, _, *lines = tell(found).splitlines()
    assert first == "  ratio 4, experts by score: 11.0 us in 5 launches" and len(lines) == 5
    assert lines[1].split() == ["route", "3.0", "2.0", "2.0"]
    with pytest.raises(ValueError, match="3 layers began, expected 4"):
        by_kind([run], [(4, False)] * 4)


def record(**own: object) -> dict[str, object]:
    ops = {
        "rope": {"us": 5.0, "bytes": 10**6}, "linear": {"us": 395.0, "bytes": 9 * 10**8},
        "moe": {"us": 600.0, "bytes": 15 * 10**8}, "kv_store": {"us": 3.0, "bytes": 0},
    }  # fmt: skip
    base = {"model": "v4-flash", "layers": 4, "tp": 1, "batch": 1, "tokens": 1, "context": 4096, "mode": "captured"}
    return base | {"gpu": "NVIDIA H100 80GB HBM3", "ms_mean": 1.0, "share": 0.5, "roof_gb_s": 3000.0, "ops": ops} | own


def test_the_picture_shows_each_op_beside_its_floor(tmp_path: Path) -> None:
    parts = _parts(record())
    assert list(parts) == ["moe", "linear", REST]
    assert parts["moe"] == (600.0, pytest.approx(500.0)) and parts["linear"] == (395.0, pytest.approx(300.0))
    assert parts[REST] == (8.0, pytest.approx(1 / 3))
    path = tmp_path / "deep" / "step.png"
    draw(path, [record(), record(mode="prefill", tokens=512), {"model": "an older line"}])
    assert path.stat().st_size > 5000
    with pytest.raises(ValueError, match="none of 1 records has its ops"):
        draw(path, [{"model": "an older line"}])


def test_scaling_is_drawn_over_the_ranks(tmp_path: Path) -> None:
    records = [
        record(layers=43, tp=2, ms_mean=8.0), record(layers=43, tp=2, ms_mean=7.0, share=0.2),
        record(layers=12, tp=2, whole_ms=9.0), record(layers=16, tp=1, whole_ms=11.0, whole_share=0.3),
        record(tp=4), record(layers=43, tp=4, mode="eager"), record(layers=43, tp=1, drafts=3),
        record(layers=43, tp=2, ms_mean=6.0, alone=True),
        record(model="v4-pro", layers=61, tp=8, ms_mean=16.0, batch=64),
    ]  # fmt: skip
    found = scaling_picture.lines_of(records)
    assert list(found) == [("v4-flash", 1), ("v4-pro", 64)]
    one, two = found["v4-flash", 1]
    assert (one.tp, one.ms, one.share, one.scaled) == (1, 11.0, 0.3, True)
    assert (two.tp, two.ms, two.share, two.scaled) == (2, 7.0, 0.2, False)
    assert found["v4-pro", 64][0].tok_s == 64 / 16e-3
    path, lines = tmp_path / "scaling.png", tmp_path / "step.jsonl"
    lines.write_text("".join(json.dumps(each) + "\n" for each in records))
    scaling_picture.main([str(lines), str(path)])
    assert path.stat().st_size > 5000
    with pytest.raises(ValueError, match="none of 1 records is a captured decode"):
        scaling_picture.draw(path, records[4:5])
