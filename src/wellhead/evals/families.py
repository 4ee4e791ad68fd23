"""The four families of questions held out from the embedded checkpoint's training.

They are package data, `data/tiny/eval.json`: an object that gives, for "sums", "capitals" and "chinese", a
list of {"prompt": str, "answer": str, "chat": bool}, and for "recall" the generator spec of `recall`.
An answer is right when the first generated line, stripped, equals it.
"""

from __future__ import annotations

import json
from importlib.resources import files

from wellhead.evals import FAMILIES
from wellhead.evals.recall import recall_questions
from wellhead.evals.task import Question, Task, matches_first_line

MAX_TOKENS = 32


def load_families() -> dict[str, Task]:
    """Every family as a task."""
    data = json.loads((files("wellhead") / "data" / "tiny" / "eval.json").read_text(encoding="utf-8"))
    questions = {
        name: recall_questions(data[name]) if name == "recall" else [Question(**entry) for entry in data[name]]
        for name in FAMILIES
    }
    return {name: Task(name, own, matches_first_line, MAX_TOKENS, stop=("\n",)) for name, own in questions.items()}
