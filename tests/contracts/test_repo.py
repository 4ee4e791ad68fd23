"""What holds for every source file besides the arrows: length, names, no pickle, one reader of variables."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "wellhead"

LONGEST = 300
# file relative to the package -> why it may be longer than LONGEST.
MAY_BE_LONGER: dict[str, str] = {}

NO_NAMES = {"utils", "util", "common", "misc"}
PICKLING_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
READS_VARIABLES = "environment.py"


def complaints(package: Path) -> tuple[list[str], int]:
    """(every broken rule as "file:line: reason", files read)."""
    found: list[str] = []
    files = sorted(package.rglob("*.py"))
    for path in files:
        where = path.relative_to(package)
        source = path.read_text(encoding="utf-8")
        lines = source.count("\n")
        if lines > LONGEST and str(where) not in MAY_BE_LONGER:
            found.append(f"{where}:{LONGEST}: {lines} lines, the limit is {LONGEST}")
        bad = NO_NAMES.intersection(where.with_suffix("").parts)
        if bad:
            found.append(f"{where}:1: the name {bad.pop()!r} says nothing; name what is in it")
        for line, reason in unsafe(ast.parse(source, str(path)), str(where) == READS_VARIABLES):
            found.append(f"{where}:{line}: {reason}")
    return found, len(files)


def unsafe(tree: ast.AST, may_read_variables: bool) -> Iterator[tuple[int, str]]:
    """(line, reason) of unpickling, remote code and reads of environment variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PICKLING_MODULES:
                    yield node.lineno, f"{alias.name} unpickles: a file must not run code"
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if (node.module or "").split(".")[0] in PICKLING_MODULES:
                yield node.lineno, f"{node.module} unpickles: a file must not run code"
            if node.module == "torch" and "load" in names:
                yield node.lineno, "torch.load unpickles: read safetensors"
            if node.module == "os" and names & {"environ", "getenv"} and not may_read_variables:
                yield node.lineno, f"only {READS_VARIABLES} reads environment variables"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = f"{node.value.id}.{node.attr}"
            if dotted == "torch.load":
                yield node.lineno, "torch.load unpickles: read safetensors"
            if dotted in ("os.environ", "os.getenv", "os.environb") and not may_read_variables:
                yield node.lineno, f"only {READS_VARIABLES} reads environment variables"
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.value.lineno, "trust_remote_code runs a stranger's code"


def test_source_keeps_the_rules() -> None:
    found, seen = complaints(PACKAGE)
    assert seen > 15, f"only {seen} source files were read: the scan looks in the wrong place"
    assert not found, "\n".join(found)


def test_exceptions_are_still_needed() -> None:
    for name in MAY_BE_LONGER:
        assert (PACKAGE / name).read_text(encoding="utf-8").count("\n") > LONGEST, f"{name} is short again"


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("ops/long.py", "\n" * (LONGEST + 1), "301 lines"),
        ("ops/utils.py", "", "'utils'"),
        ("common/thing.py", "", "'common'"),
        ("model/misc/thing.py", "", "'misc'"),
        ("model/a.py", "import pickle", "pickle unpickles"),
        ("model/a.py", "from dill import loads", "dill unpickles"),
        ("model/a.py", "import torch\nx = torch.load('w.bin')", "torch.load"),
        ("model/a.py", "from torch import load", "torch.load"),
        ("model/a.py", "f(trust_remote_code=True)", "trust_remote_code"),
        ("model/a.py", "import os\nx = os.environ['A']", "only environment.py"),
        ("model/a.py", "import os\nx = os.getenv('A')", "only environment.py"),
        ("model/a.py", "from os import environ", "only environment.py"),
    ],
)
def test_planted_violation_is_caught(tmp_path: Path, file: str, source: str, reason: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source, encoding="utf-8")
    (tmp_path / "environment.py").write_text("import os\nx = os.environ\n", encoding="utf-8")
    found, seen = complaints(tmp_path)
    assert seen == 2
    assert len(found) == 1 and reason in found[0], found


def test_constraints_pin_every_direct_dependency() -> None:
    """`make demo` and `make test` are repeatable only if no direct dependency floats."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0] for line in lines if line and not line.startswith("#")}
    names = {requirement.split(";")[0].split(">")[0].split("=")[0].strip() for requirement in asked}
    assert len(names) > 10
    assert names == pins
