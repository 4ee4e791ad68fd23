"""Questions asked in another process, which may die of them: a broken torch can end the process that imports it.

The child tells each question before it asks, so that who kills it is known; it is started again for the rest. Standard
library only.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wellhead.dispatch import capability, libraries, signals
from wellhead.dispatch.libraries import Library

SECONDS = 120.0  # for one process, so for all questions if none is killed; a cold disk takes tens for torch
CARDS, INTERPRETER, DISK = "torch.cuda", "triton.interpreter", "huggingface_hub.cache"
_CHILD = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from wellhead.dispatch import probing
probing.child()"""


def _free_in_cache() -> int:
    """Bytes free where the hub's downloads go."""
    folder = Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


QUESTIONS: dict[str, Callable[[], Any]] = {
    CARDS: capability.asked_of_torch,
    INTERPRETER: libraries.interpreter_on,
    DISK: _free_in_cache,
}


class Answers:
    """Of each library a `Library`; of the other questions a value, or the reason why there is none."""

    def __init__(self) -> None:
        self.libraries: dict[str, Library] = {}
        self.values: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.killed: set[str] = set()  # libraries and questions that ended a process

    def of(self, name: str) -> Library:
        return self.libraries[name]


def ask(names: Sequence[str], seconds: float = SECONDS) -> Answers:
    """Import libraries and ask `CARDS`, `INTERPRETER` and `DISK`, each in its turn, none of it in this process.
    What ends a process or has not ended it after `seconds` is not asked again; the rest has as long in another one.
    """
    answers, left = Answers(), list(names)
    while left:
        said, how = _run(left, seconds)
        begun = ""
        for line in said:
            begun = line.get("begin", begun)
            if "library" in line:
                answers.libraries[begun] = Library(**line["library"])
            elif "value" in line:
                answers.values[begun] = line["value"]
            elif "failed" in line:
                answers.failed[begun] = line["failed"]
        done = {*answers.libraries, *answers.values, *answers.failed}
        left = [name for name in left if name not in done]
        if not left:
            break
        culprit = begun if begun in left else left[0]
        answers.killed.add(culprit)
        _record(answers, culprit, how)
        left = [name for name in left if name != culprit and not name.startswith(f"{culprit}.")]
        for name in names:
            if name.startswith(f"{culprit}.") and name not in done:
                _record(answers, name, f"not asked: {culprit} {how}")
    return answers


def _record(answers: Answers, name: str, how: str) -> None:
    if name in QUESTIONS:
        answers.failed[name] = how
    else:
        answers.libraries[name] = Library(name, None, f"broken: importing it {how}")


def _run(names: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """(what a child said about the names, how it ended)."""
    command = [sys.executable, "-c", _CHILD, json.dumps([path for path in sys.path if isinstance(path, str)]), *names]
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        return [], f"could not be asked: {error.strerror}"
    how = ""
    with child:
        try:
            said, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            said, _ = child.communicate()
            how = f"did not end within {seconds:g} s"
    return _parsed(said), how or _how(child.returncode)


def _parsed(said: bytes) -> list[dict[str, Any]]:
    found = []
    for line in said.decode(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the line that it died in
            break
    return found


def _how(status: int) -> str:
    if status < 0:
        return f"killed the process ({signals.name(-status)})"
    return f"ended the process (exit status {status})"


def child() -> None:
    """Ask what the command line names, and tell the answers to a pipe that no library writes into."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def tell(said: dict[str, Any]) -> None:
            out.write(json.dumps(said) + "\n")
            out.flush()

        for name in sys.argv[2:]:
            tell({"begin": name})
            if name not in QUESTIONS:
                tell({"library": asdict(libraries.probe(name))})
                continue
            try:
                tell({"value": QUESTIONS[name]()})
            except Exception as error:
                tell({"failed": f"raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})
