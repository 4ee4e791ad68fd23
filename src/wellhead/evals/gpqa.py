"""GPQA: four-way multiple choice at graduate level, asked as a user turn, marked by the letter.

Data: a CSV or JSON-lines file with the columns "Question", "Correct Answer", "Incorrect Answer 1" to "... 3".
Source of the task: Rein et al., "GPQA: A Graduate-Level Google-Proof Q&A Benchmark", 2023. The choices of
each question are shuffled with a seed.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

from wellhead.evals.draws import drawn
from wellhead.evals.records import read_records
from wellhead.evals.task import Question, Task

MAX_TOKENS = 2048
LETTERS = "ABCD"
COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")

_STATED = re.compile(r"\b(?i:answer)\b(?:\s+is)?\s*:?[\s*$]*(?:\\boxed\{)?\(?([A-D])(?![A-Za-z0-9'])")
_ALONE = re.compile(r"[\s*(]*([A-D])[\s*).:]*")


def stated_letter(text: str) -> str | None:
    """The letter of the last "answer: X" or "answer is (X)", or of a text that is one letter; else None."""
    stated = _STATED.findall(text)
    if stated:
        return str(stated[-1])
    alone = _ALONE.fullmatch(text)
    return alone.group(1) if alone else None


def is_right(text: str, answer: str) -> bool:
    """True when the stated letter is `answer`."""
    return stated_letter(text) == answer


def load_gpqa(path: Path, seed: int = 0, count: int | None = None) -> Task:
    """The first `count` rows of the file as a task (all by default)."""
    questions = []
    for number, (_, row) in enumerate(read_records(path, COLUMNS)[:count], start=1):
        order = drawn(Random(f"gpqa {seed} {number}"), COLUMNS[1:], len(LETTERS))
        lettered = zip(LETTERS, order, strict=True)
        choices = "\n".join(f"{letter}) {row[column].strip()}" for letter, column in lettered)
        prompt = (
            f"{row['Question'].strip()}\n\n{choices}\n\n"
            'End with one line of the form "Answer: X", where X is A, B, C or D.'
        )
        questions.append(Question(prompt, LETTERS[order.index("Correct Answer")], chat=True))
    return Task("gpqa", questions, is_right, MAX_TOKENS)
