"""Documents name functions that exist, commands that can be typed, and output that is current."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from wellhead.cli import main, parser

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(wellhead(?:\.\w+)+):(\w+(?:\.\w+)*)`")
NAMES = sorted(set(NAMED.findall((ROOT / "docs" / "token.md").read_text(encoding="utf-8"))))
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES.remove("docs/log.md")  # commands as they were then
INLINE, LINE = re.compile(r"`(wellhead [^`]+)`"), re.compile(r"^(?:\$ )?(wellhead (?!in ).+)$", re.MULTILINE)


def commands(page: str) -> list[str]:
    """Of running text and of blocks."""
    parts = (ROOT / page).read_text(encoding="utf-8").split("```")
    found = [one for place, part in enumerate(parts) for one in (LINE if place % 2 else INLINE).findall(part)]
    return sorted({" ".join(one.partition(" #")[0].split()) for one in found})


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


@pytest.mark.parametrize(
    ("page", "command"), [(page, command) for page in PAGES for command in commands(page)], ids=lambda word: word
)
def test_a_command_can_be_typed(page: str, command: str) -> None:
    words = shlex.split(command.replace("[", "").replace("]", "").replace("--tp N ", ""))[1:]
    if words in (["bench", "step"], ["plan"]) or "--help" in words:
        return  # a name
    args = parser().parse_args(words)
    args.words = words
    if hasattr(args, "modes"):
        args.modes.check(args)


def test_the_plan_shown_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "before_you_serve.md").read_text(encoding="utf-8")
    command, shown = re.search(r"\$ wellhead (plan .*)\n((?:.*\n)*?)```", page).groups()  # type: ignore[union-attr]
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    pattern = ".*".join(map(re.escape, shown.split(" ...")))  # a long source is cut
    assert re.fullmatch(pattern, printed), printed
