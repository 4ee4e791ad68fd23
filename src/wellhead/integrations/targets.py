"""Targets: functions of another project that ours stand in for, each with the contract it was written against.

A contract is the parameters of a function, and where those are `**kwargs`, the keywords that its caller passes. Nothing
here knows an engine; standard library only, so that what calls it can fail for one reason at a time.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """One function to stand in for.

    op: the group it belongs to. module and name: where it is. parameters: what `parameters_of` said of it when this was
    written. ours: "module:function". around: ours takes the original first. caller and keywords: whose call of `name`
    passes which keywords. bound: "module:name" that must be the same function after the replacement.
    """

    op: str
    module: str
    name: str
    parameters: str
    ours: str
    around: bool = False
    caller: str = ""
    keywords: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    def row(self, why: str) -> Row:
        """Its line of the table: ours where there is no reason against it."""
        ours = self.ours.replace(":", ".").removeprefix("wellhead.integrations.")
        return Row(self.op, self.name, self.module.partition(".")[2], "stock" if why else ours, why)


@dataclass(frozen=True)
class Row:
    """A line of the table: group, what is replaced, what it was, what it is or would be, and why not."""

    op: str
    target: str
    stock: str
    now: str
    why: str = ""


class Moved(Exception):
    """A target is not what its contract says; the message names the target, the old and the new."""


def resolve(module: str, name: str) -> Any:
    """The object, or Moved with the reason that it cannot be reached."""
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # an engine's import may raise anything
        raise Moved(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise Moved(f"{module}.{name} is gone: nothing is called {part!r} there")
        found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    return found


def parameters_of(function: Callable[..., Any]) -> str:
    """Names and kinds, `=` where there is a default: "self, x, norm=, *, rows=, **rest". Annotations do not count."""
    said: list[str] = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            said.append("*")
            starred = True
        mark = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        mark = "**" if parameter.kind is parameter.VAR_KEYWORD else mark
        starred = starred or mark == "*"
        said.append(f"{mark}{parameter.name}{'=' if parameter.default is not parameter.empty else ''}")
    return ", ".join(said)


def keywords_of(caller: Callable[..., Any], name: str) -> tuple[str, ...]:
    """The keywords with which the source of `caller` calls `name`, sorted; empty where it does not."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(caller)))
    return tuple(
        sorted(
            {
                keyword.arg or "**"
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == name
                for keyword in node.keywords
            }
        )
    )


def check(target: Target) -> Any:
    """The stock object of a target that keeps its contract; Moved names target, old and new."""
    stock = resolve(target.module, target.name)
    found = parameters_of(stock.__func__ if isinstance(stock, classmethod) else stock)
    if found != target.parameters:
        raise Moved(f"{target.path} moved: it was ({target.parameters}), it is ({found})")
    if target.caller:
        module, _, name = target.caller.partition(":")
        called = target.name.rpartition(".")[2]
        passed = keywords_of(inspect.unwrap(resolve(module, name)), called)
        if passed != tuple(sorted(target.keywords)):
            was, now = ", ".join(sorted(target.keywords)), ", ".join(passed)
            raise Moved(f"{target.path} moved: {module}.{name} passed ({was}), it passes ({now})")
    return stock


def release(version: str) -> tuple[int, ...]:
    """The numbers in front: "0.5.23.post1" -> (0, 5, 23)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def installed(distribution: str) -> str | None:
    """The version of an installed distribution; None without it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def outside(distribution: str, version: str | None, first: str, below: str) -> str | None:
    """Why that version was not tested, None if it lies in first <= version < below."""
    if version is None:
        return f"{distribution} is not installed"
    if release(first) <= release(version) < release(below):
        return None
    return f"{distribution} {version} was not tested; {first} <= version < {below} was"


def table(rows: Sequence[Row]) -> str:
    """Rows under a heading, columns aligned; a reason below the first line of its op."""
    cells = [("op", "target", "stock", "now"), *((row.op, row.target, row.stock, row.now) for row in rows)]
    widths = [max(len(cell[column]) for cell in cells) for column in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip() for cell in cells]
    for at in range(len(rows), 0, -1):
        said = at > 1 and (rows[at - 2].op, rows[at - 2].why) == (rows[at - 1].op, rows[at - 1].why)
        if rows[at - 1].why and not said:
            lines.insert(at + 1, f"{'':{widths[0]}}  {rows[at - 1].why}")
    return "\n".join(lines)
