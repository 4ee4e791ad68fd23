"""Contracts of targets, over a module made here: what moved is named, with old and new."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from wellhead.integrations import targets
from wellhead.integrations.targets import Moved, Row, Target, check, keywords_of, outside, parameters_of, release, table


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A module on disk, since contracts of callers read source."""
    source = """
def attend(q, k, *, scale=1.0, **rest): ...
def kernel(**kwargs): ...
class Layer:
    def forward(self, x):
        return kernel(q=x, scale=2)
    @staticmethod
    def plain(x, *more, last): ...
    @classmethod
    def register(cls, key, value): ...
"""
    (tmp_path / "some_engine.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("some_engine", None)
    import some_engine

    return some_engine


def test_parameters_are_names_kinds_and_defaults(engine: types.ModuleType) -> None:
    assert parameters_of(engine.attend) == "q, k, *, scale=, **rest"
    assert parameters_of(engine.Layer.plain) == "x, *more, last"
    assert keywords_of(engine.Layer.forward, "kernel") == ("q", "scale")
    assert keywords_of(engine.Layer.forward, "attend") == ()


def test_a_kept_contract_gives_the_stock_object(engine: types.ModuleType) -> None:
    kept = Target(
        "mla", "some_engine", "kernel", "**kwargs", "", caller="some_engine:Layer.forward", keywords=("scale", "q")
    )
    assert check(kept) is engine.kernel
    assert check(Target("mla", "some_engine", "Layer.forward", "self, x", "")) is engine.Layer.forward
    assert check(Target("mla", "some_engine", "Layer.register", "cls, key, value", "")).__func__ is not None


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target("mla", "some_engine", "attend", "q, k", ""), r"attend moved: it was \(q, k\), it is \(q, k, \*"),
        (Target("mla", "some_engine", "Layer.away", "self", ""), "some_engine.Layer.away is gone"),
        (
            Target("mla", "some_engine", "Layer.register", "cls, key", ""),
            r"was \(cls, key\), it is \(cls, key, value\)",
        ),
        (Target("mla", "no_such_engine", "x", "", ""), "no_such_engine cannot be imported: ModuleNotFoundError"),
        (
            Target("mla", "some_engine", "kernel", "**kwargs", "", caller="some_engine:Layer.forward", keywords=("q",)),
            r"passed \(q\), it passes \(q, scale\)",
        ),
    ],
)
def test_what_moved_is_named(engine: types.ModuleType, target: Target, said: str) -> None:
    with pytest.raises(Moved, match=said):
        check(target)


def test_versions() -> None:
    assert release("0.5.23.post1") == (0, 5, 23) and release("5.17.0rc1") == (5, 17, 0) and release("x") == ()
    assert outside("sglang", "0.5.23.post1", "0.5.23", "0.5.24") is None
    assert "0.5.24 was not tested" in str(outside("sglang", "0.5.24", "0.5.23", "0.5.24"))
    assert outside("sglang", None, "1", "2") == "sglang is not installed"
    assert targets.installed("no-such-distribution") is None


def test_a_row_names_ours_where_nothing_is_against_it() -> None:
    target = Target("mla", "some_engine.srt.ops", "kernel", "", "wellhead.integrations.sglang_calls:flash_mla")
    assert target.row("") == Row("mla", "kernel", "srt.ops", "sglang_calls.flash_mla")
    assert target.row("it moved") == Row("mla", "kernel", "srt.ops", "stock", "it moved")


def test_the_table_keeps_reasons_below_their_line() -> None:
    said = table([Row("mla", "attend", "engine", "stock", "it moved"), Row("moe", "experts", "engine", "ours")])
    assert said.splitlines()[0].split() == ["op", "target", "stock", "now"]
    assert [line.strip().split()[0] for line in said.splitlines()[1:]] == ["mla", "it", "moe"]
