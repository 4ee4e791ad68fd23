"""The four families of questions held out from the embedded checkpoint's training.

They are package data, `data/tiny/eval.json`: an object that gives, for "sums", "capitals" and "chinese", a
list of {"prompt": str, "answer": str, "chat": bool}, and for "recall" the generator spec of `recall`.
An answer is right when the first generated line, stripped, equals it.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from wellhead.evals import FAMILIES
from wellhead.evals.recall import recall_questions
from wellhead.evals.records import DataError, read_json
from wellhead.evals.task import Question, Task, matches_first_line

MAX_TOKENS = 32


def load_families(path: Path | None = None) -> dict[str, Task]:
    """Every family as a task; `path` replaces the package's file. Raises DataError naming file and entry."""
    if path is None:
        with as_file(files("wellhead") / "data" / "tiny" / "eval.json") as packaged:
            return load_families(packaged)
    data = read_json(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected an object with keys {', '.join(FAMILIES)}, got {data!r:.60}")
    missing = [name for name in FAMILIES if name not in data]
    if missing:
        raise DataError(f"{path}: no family {missing[0]!r}; expected keys {', '.join(FAMILIES)}")
    tasks = {}
    for name in FAMILIES:
        where = f"{path}, family {name!r}"
        questions = recall_questions(data[name], where) if name == "recall" else _listed(data[name], where)
        tasks[name] = Task(name, questions, matches_first_line, MAX_TOKENS, stop=("\n",))
    return tasks


def _listed(entries: Any, where: str) -> list[Question]:
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{where}: expected a list of questions, got {entries!r:.60}")
    questions = []
    for number, entry in enumerate(entries, start=1):
        for key, kind in (("prompt", str), ("answer", str), ("chat", bool)):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                wanted = f"{key!r} of type {kind.__name__}"
                raise DataError(f"{where}, entry {number}: expected {wanted}, got {entry!r:.80}")
        questions.append(Question(entry["prompt"], entry["answer"], entry["chat"]))
    return questions
