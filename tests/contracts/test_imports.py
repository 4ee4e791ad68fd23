"""The import arrows of docs/architecture.md, held by reading every source file's syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "wellhead"

_BELOW_ENGINE = {"formats", "dispatch", "ops", "model"}
_DOORS = {*_BELOW_ENGINE, "engine", "text", "environment"}

# room (or root module) -> what it may import besides itself. A room that is not listed is an error.
MAY_IMPORT: dict[str, set[str]] = {
    "formats": set(),
    "dispatch": {"formats", "environment"},
    "ops": {"formats", "dispatch"},
    "model": {"formats", "dispatch", "ops"},
    "engine": {*_BELOW_ENGINE, "text", "environment"},
    "server": {"engine", "text", "__init__"},
    "evals": {*_DOORS, "testing"},
    "cli": {*_DOORS, "evals", "integrations", "server", "testing", "__init__"},
    "text": set(),
    "testing": {"formats", "dispatch", "ops", "model"},
    "integrations": {"formats", "dispatch", "ops", "model", "environment"},
    "data": set(),
    "environment": set(),
    "__init__": {"engine", "environment"},
    "__main__": {"cli"},
}
MODEL_NAME = "deepseek"
OF_MODEL = ("wellhead.model.weights", "wellhead.model.device_kernels")  # what integrations may import of it


def module_name(path: Path, package: Path) -> str:
    """Dotted name of a file of the package; a folder's __init__.py has the folder's name."""
    parts = ["wellhead", *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of ours that a file imports, inside functions and type checks too."""
    name = module_name(path, package)
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found = [node.args[0].value]
        yield from ((node.lineno, f) for f in found if f.split(".")[0] == "wellhead")  # type: ignore[attr-defined]


def room(dotted: str, package: Path) -> str:
    """The room or root module of a dotted name of ours; `__init__` for what the package itself defines."""
    parts = dotted.split(".")
    if len(parts) == 1:
        return "__init__"
    exists = (package / parts[1]).is_dir() or (package / f"{parts[1]}.py").is_file()
    return parts[1] if exists or parts[1] in MAY_IMPORT else "__init__"


def op_half(dotted: str) -> tuple[str, str] | None:
    """(op, "reference" or "kernels") of a name inside one half of an op folder."""
    parts = dotted.split(".")
    if len(parts) >= 4 and parts[1] == "ops" and (parts[3] == "reference" or parts[3].endswith("kernels")):
        return parts[2], "reference" if parts[3] == "reference" else "kernels"
    return None


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every identifier; strings and comments are not looked at."""
    for node in ast.walk(tree):
        for attribute in ("id", "attr", "name", "asname", "arg", "module"):
            value = getattr(node, attribute, None)
            if isinstance(value, str):
                # The name of an imported module or symbol is its owner's choice.
                theirs = isinstance(node, (ast.alias, ast.ImportFrom)) and attribute != "asname"
                if not theirs:
                    yield getattr(node, "lineno", 0), value


def violations(package: Path) -> tuple[list[str], int]:
    """(every broken arrow as "file:line: reason", files read)."""
    broken: list[str] = []
    files = sorted(package.rglob("*.py"))
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        name = module_name(path, package)
        own = room(name, package)
        where = path.relative_to(package)
        if own not in MAY_IMPORT:
            broken.append(f"{where}:1: room {own!r} is not in MAY_IMPORT; give it its arrows")
            continue
        for line, target in imported(tree, path, package):
            their, halves = room(target, package), (op_half(name), op_half(target))
            if their != own and their not in MAY_IMPORT[own]:
                broken.append(f"{where}:{line}: {own} must not import {target}")
            elif (
                own == "integrations" and their == "model" and not target.startswith(OF_MODEL)
            ):
                broken.append(f"{where}:{line}: integrations may import {', '.join(OF_MODEL)} only, not {target}")
            elif halves[0] and halves[1] and halves[0][0] == halves[1][0] and halves[0] != halves[1]:
                broken.append(f"{where}:{line}: {halves[0][1]} must not import {halves[1][1]} of its op")
        if own == "model":
            continue
        if MODEL_NAME in str(where).lower():
            broken.append(f"{where}:1: a model's name in a file name outside model/")
        for line, identifier in identifiers(tree):
            if MODEL_NAME in identifier.lower():
                broken.append(f"{where}:{line}: a model's name in identifier {identifier!r} outside model/")
    return broken, len(files)


def test_source_follows_the_arrows() -> None:
    broken, seen = violations(PACKAGE)
    assert seen > 15, f"only {seen} source files were read: the scan looks in the wrong place"
    assert not broken, "\n".join(broken)


GOOD = {
    "__init__.py": "def __getattr__(name):\n    from wellhead.engine.llm import LLM\n    return LLM\n",
    "formats/e4m3.py": "import torch\nfrom torch import deepseek_lookalike\n",
    "ops/linear/__init__.py": "from .api import linear\n",
    "ops/linear/api.py": "from wellhead.formats import e4m3\nfrom . import kernels, reference\n",
    "ops/linear/reference.py": "",
    "ops/linear/kernels.py": "from wellhead.ops.rope import reference\n",
    "ops/rope/reference.py": "",
    "model/deepseek_v4.py": "from wellhead.ops.linear import linear\nclass DeepSeekV4: ...\n",
    "engine/llm.py": "from wellhead import text\nfrom wellhead.model.deepseek_v4 import DeepSeekV4 as M\n",
    "text/chat.py": "MARKUP = 'deepseek'\n",
    "integrations/vllm.py": "from wellhead.model.weights import mapping\n",
}

PLANTED = [
    ("formats/e4m3.py", "from wellhead.ops import linear", "formats must not import wellhead.ops.linear"),
    ("formats/e4m3.py", "from ..ops.linear import api", "formats must not import wellhead.ops.linear.api"),
    ("ops/linear/api.py", "import wellhead.model.deepseek_v4", "ops must not import wellhead.model"),
    (
        "ops/linear/api.py",
        "def f():\n    from wellhead.engine import llm",
        "ops must not import wellhead.engine.llm",
    ),
    ("model/state.py", "from wellhead import text", "model must not import wellhead.text"),
    ("model/state.py", "import importlib\nimportlib.import_module('wellhead.cli')", "model must not import"),
    ("engine/llm.py", "from wellhead.testing import cases", "engine must not import wellhead.testing.cases"),
    ("text/chat.py", "from wellhead import __version__", "text must not import wellhead.__version__"),
    ("text/chat.py", "from .. import formats", "text must not import wellhead.formats"),
    ("testing/cases.py", "from wellhead.engine import core", "testing must not import wellhead.engine.core"),
    ("server/app.py", "from wellhead.evals import wilson", "server must not import wellhead.evals.wilson"),
    ("server/app.py", "from wellhead.model import state", "server must not import wellhead.model.state"),
    ("engine/llm.py", "from wellhead.server import bridge", "engine must not import wellhead.server.bridge"),
    ("text/chat.py", "from wellhead.server import protocol", "text must not import wellhead.server.protocol"),
    ("testing/cases.py", "from wellhead.server.app import make_app", "testing must not import wellhead.server.app"),
    (
        "integrations/vllm.py",
        "from wellhead.model import state",
        "integrations may import wellhead.model.weights, wellhead.model.device_kernels only",
    ),
    ("ops/linear/reference.py", "from .kernels import launch", "reference must not import kernels"),
    (
        "ops/linear/reference.py",
        "from wellhead.ops.linear import kernels",
        "reference must not import kernels",
    ),
    ("ops/linear/kernels.py", "from . import reference", "kernels must not import reference"),
    ("ops/linear/wide_kernels.py", "from .reference import f", "kernels must not import reference"),
    ("ops/linear/reference.py", "from .wide_kernels import f", "reference must not import kernels"),
    ("ops/deepseek_linear.py", "", "a model's name in a file name"),
    ("ops/linear/api.py", "class DeepseekLinear: ...", "a model's name in identifier 'DeepseekLinear'"),
    ("engine/llm.py", "def f(deepseek_config): ...", "a model's name in identifier 'deepseek_config'"),
    ("extras/thing.py", "", "room 'extras' is not in MAY_IMPORT"),
]


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source, encoding="utf-8")
    return folder


def test_good_tree_has_no_violation(tmp_path: Path) -> None:
    assert violations(write_tree(tmp_path, GOOD)) == ([], len(GOOD))


@pytest.mark.parametrize(
    ("file", "source", "reason"), PLANTED, ids=[f"{p[0]}-{i}" for i, p in enumerate(PLANTED)]
)
def test_planted_violation_is_caught(tmp_path: Path, file: str, source: str, reason: str) -> None:
    broken, _ = violations(write_tree(tmp_path, {**GOOD, file: source}))
    assert len(broken) == 1, broken
    assert broken[0].startswith(f"{file}:")
    assert reason in broken[0]
