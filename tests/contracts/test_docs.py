"""Documents that name functions name functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(wellhead(?:\.\w+)+):(\w+(?:\.\w+)*)`")
NAMES = sorted(set(NAMED.findall((ROOT / "docs" / "token.md").read_text(encoding="utf-8"))))


def defined(path: Path) -> set[str]:
    """Functions and classes of a module, and "Class.method"."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_there_are_names() -> None:
    assert len(NAMES) > 20


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_what_a_token_meets_exists(module: str, name: str) -> None:
    path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
    assert path.is_file(), f"docs/token.md names {module}, which is no module"
    assert name in defined(path), f"docs/token.md names {name} in {module}; it has {sorted(defined(path))}"


def test_the_page_of_the_ops_is_current() -> None:
    from tools import op_table

    assert op_table.PAGE.read_text(encoding="utf-8") == op_table.page(), "run python3 tools/op_table.py"
