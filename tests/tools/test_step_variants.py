"""`tools/step_variants.py` without a card: what its words mean, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from tools.step_variants import AS_IT_IS, of, table

from tools import step_variants
from wellhead.ops.linear import api


def test_fields_replace_what_the_op_chooses_and_leave_again() -> None:
    before = api.choose_config(1, 4096, 4096)
    with of("linear rows=8 num_warps=8; bf16_linear num_warps=1"):
        inside = api.choose_config(1, 4096, 4096)
    assert (inside.rows, inside.num_warps, inside.inputs) == (8, 8, before.inputs)
    assert api.choose_config(1, 4096, 4096) == before


def test_a_file_says_what_the_step_is_captured_inside(tmp_path: Path) -> None:
    path = tmp_path / "other.py"
    path.write_text(
        "import contextlib\nfrom wellhead.ops.linear import api\n"
        "@contextlib.contextmanager\ndef variant():\n    api.MARK = 1\n    yield\n    del api.MARK\n"
    )
    with of(str(path)):
        assert api.MARK == 1
    assert not hasattr(api, "MARK")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("linear", r"'linear': expected OP FIELD=VALUE"), ("linear rows=4,8", "'linear rows=4,8': expected"),
        ("linear rows=4; ", "'': expected"), ("none.py", "none.py: no such file"),
        ("lienar rows=4", "no op 'lienar'; there are"),
        ("norm_quant rows=4", "norm_quant chooses no configuration"), ("linear row=4", "linear has no field row"),
    ],
)  # fmt: skip
def test_a_word_that_means_nothing_is_named_before_a_card_is_asked(words: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        step_variants.main([words])


def test_the_table_compares_with_the_step_as_it_is() -> None:
    times = {AS_IT_IS: [2.0, 2.0, 2.2, 1.8, 2.0], "linear rows=4": [1.9, 1.8, 1.9, 2.0, 1.9]}
    head, first, second = table(times, {AS_IT_IS: 0.0, "linear rows=4": 3e-3})
    assert first.split() == ["2.0000", "2.0000", "2.0000", "+0.00%", "0.0e+00", *AS_IT_IS.split()]
    assert second.split() == ["1.9000", "1.9000", "1.9000", "-5.00%", "3.0e-03", "linear", "rows=4"]
    assert head.split() == ["ms", "middle", "half", "change", "logits"]


class Bench:
    """Steps take as many milliseconds as they were captured with rows."""

    calls: list[tuple[int, int]] = []

    def __init__(self, name: str, layers: int, batches: Sequence[int], context: int, **own: Any) -> None:
        assert (name, layers, batches, context, own["split"].world) == ("v4-flash", 3, [2], 512, 2)
        self.model = SimpleNamespace(weights="kept")
        self.plan("kept")

    def plan(self, weights: str) -> None:
        assert weights == "kept"
        self.rows = api.choose_config(1, 4096, 4096).rows

    def steps(self, *, captured: bool) -> int:
        assert captured and self.rows == api.choose_config(1, 4096, 4096).rows
        return self.rows

    def once(self, step: int, batch: int, number: int) -> tuple[float, torch.Tensor]:
        assert api.choose_config(1, 4096, 4096).rows == 2
        self.calls.append((step, number))
        return float(step), torch.full((batch, 4), 1.0 + step)


def test_variants_are_planned_inside_and_timed_in_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wellhead.testing import bench_step

    monkeypatch.setattr(bench_step, "StepBench", Bench)
    words = ["linear rows=4", "--layers", "3", "--batch", "2", "--context", "512", "--alone", "2", "--rounds", "130"]
    assert step_variants.main(words) == 0
    assert Bench.calls[:6] == [(2, 0), (4, 0), (2, 0), (4, 0), (2, 1), (4, 1)] and Bench.calls[-1] == (4, 1)
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(AS_IT_IS) and "+100.00%" in second and "6.7e-01" in second
