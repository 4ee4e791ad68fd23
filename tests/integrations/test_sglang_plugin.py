"""The plugin where SGLang is absent or does not fit: it does nothing unasked, and ends the process when asked."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wellhead import environment, integrations
from wellhead.integrations import sglang, sglang_calls, targets

ROOT = Path(__file__).resolve().parents[2]


def test_the_entry_point_is_declared_and_resolves() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (value,) = project["entry-points"]["sglang.srt.plugins"].values()
    assert targets.resolve(*value.split(":")) is sglang.register


def test_every_replacement_exists_and_takes_what_its_target_does() -> None:
    for target in sglang.TARGETS:
        assert target.op in sglang.GROUPS
        ours = targets.parameters_of(targets.resolve(*target.ours.split(":")))
        if target.keywords:
            names = {part.strip().rstrip("=") for part in ours.removeprefix("*,").split(",")}
            assert set(target.keywords) <= names
        else:
            assert ours == ("original, " if target.around else "") + target.parameters


def test_unasked_it_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WELLHEAD_OPS", raising=False)
    before = set(sys.modules)
    sglang.register()
    assert not {name for name in set(sys.modules) - before if name.startswith("sglang")}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WELLHEAD_OPS", "mla,experts", r"there is no 'experts', expected some of mla, indexer, moe, mhc, linear, all"),
        ("WELLHEAD_OP", "mla", "nearest is WELLHEAD_OPS"),
        ("WELLHEAD_ON_MISMATCH", "ignore", "expected stop or go-on"),
    ],
)
def test_a_wrong_setting_ends_the_process(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    """SGLang swallows every exception but SystemExit."""
    monkeypatch.setenv("WELLHEAD_OPS", "mla")
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=said):
        sglang.register()


@pytest.mark.parametrize(
    ("error", "leaves", "said"),
    [(RuntimeError("odd"), SystemExit, "RuntimeError: odd"), (KeyboardInterrupt(), KeyboardInterrupt, None)],
)
def test_what_goes_wrong_while_placing_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, leaves: type[BaseException], said: str | None
) -> None:
    def fails(asked: object) -> None:
        raise error

    monkeypatch.setenv("WELLHEAD_OPS", "mla")
    monkeypatch.setattr(sglang, "place", fails)
    with pytest.raises(leaves, match=said):
        sglang.register()


def test_the_product_stands_in_for_published_block_fp8_alone() -> None:
    """It is returned itself: SGLang names it in its messages and asks which function it is."""

    def original(weight_block_size: list[int] | None = None, act_scale_ue8m0: bool = False) -> tuple[object, bool]:
        return weight_block_size, act_scale_ue8m0

    assert sglang_calls.dispatch_linear(original, [128, 128], True) is sglang_calls.block_fp8_linear
    for size, power_of_two in (([128, 128], False), ([32, 32], True), (None, True)):
        assert sglang_calls.dispatch_linear(original, size, power_of_two) == (size, power_of_two)


def test_what_cannot_be_placed_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WELLHEAD_OPS", "mla")
    monkeypatch.setattr(sglang, "place", lambda asked: ([targets.Row("mla", "x", "y", "stock")], ["mla: it moved"]))
    with pytest.raises(SystemExit, match=r"(?s)WELLHEAD_OPS=mla was asked.*mla: it moved.*WELLHEAD_ON_MISMATCH=go-on"):
        sglang.register()
    assert "stock" in capsys.readouterr().err
    monkeypatch.setenv("WELLHEAD_ON_MISMATCH", "go-on")
    sglang.register()


def test_groups_are_read_in_order_and_all_means_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, groups in (("moe, mla", ("mla", "moe")), ("all", sglang.GROUPS), ("", ())):
        monkeypatch.setenv("WELLHEAD_OPS", said)
        assert environment.engine_ops(sglang.GROUPS) == groups
    for said, goes_on in (("", False), ("stop", False), ("go-on", True)):
        monkeypatch.setenv("WELLHEAD_ON_MISMATCH", said)
        assert environment.goes_on() == goes_on


def test_importing_wellhead_and_its_adapters_imports_no_engine() -> None:
    code = (
        "import sys, wellhead, wellhead.integrations.sglang, wellhead.integrations.sglang_calls, "
        "wellhead.integrations.transformers; "
        "print([name for name in sys.modules if name.split('.')[0] in ('sglang', 'transformers', 'vllm')])"
    )
    assert printed(code) == "[]"
    light = "import sys, wellhead.integrations.sglang; print('torch' in sys.modules)"
    assert printed(light) == "False", "a failing import in front of register() would be swallowed by SGLang"


def printed(code: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    return done.stdout.strip()


def test_the_report_says_that_an_engine_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang, "installed", lambda name: None)
    assert {row.why for row in integrations.report("sglang")} == {"sglang is not installed"}
    with pytest.raises(ValueError, match="no integration with 'vllm'; there are sglang, transformers"):
        integrations.report("vllm")
