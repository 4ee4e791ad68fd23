"""GSM8K: grade-school word problems, asked with k worked examples, marked by the final number.

Data: a JSON-lines file with "question" and "answer", each answer ending in "#### n". Source of the task:
Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021. The examples come from the same file,
drawn with a seed for each question; a row with the question's own text is never one of them.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from random import Random

from wellhead.evals.draws import drawn
from wellhead.evals.records import DataError, read_records
from wellhead.evals.task import Question, Task

MAX_TOKENS = 512

# A minus counts only where it cannot be a subtraction: "12-5" ends in 5, "= -5" in -5. "$" may stand on
# either side of it.
_NUMBER = re.compile(r"(?:(?<![\d)])-)?\$?(?:(?<=\$)-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def last_number(text: str) -> Decimal | None:
    """The number after the last "####" if there is one, else the last number of the text; else None.

    Thousands commas, a dollar sign and a trailing full stop are not part of the value: "$1,200." is 1200.
    """
    marked = _NUMBER.search(text.rsplit("####", 1)[1]) if "####" in text else None
    found = [marked.group()] if marked else _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("$", "")) if found else None


def is_right(text: str, answer: str) -> bool:
    """True when the generated text ends in the number `answer`."""
    return last_number(text) == Decimal(answer)


def load_gsm8k(path: Path, shots: int = 5, seed: int = 0, count: int | None = None) -> Task:
    """The first `count` rows of the file as a task (all by default), each after `shots` worked examples."""
    rows = read_records(path, ("question", "answer"))
    if shots < 0:
        raise ValueError(f"shots must be 0 or more, got {shots}")
    questions = []
    for number, (line, row) in enumerate(rows[:count], start=1):
        answer = row["answer"]
        value = last_number(answer) if "####" in answer else None
        if value is None:
            raise DataError(f"{path}, line {line}: column 'answer' must end in '#### n', got {answer[-60:]!r}")
        others = [other for _, other in rows if other["question"].strip() != row["question"].strip()]
        if len(others) < shots:
            raise DataError(f"{path}: {shots} examples asked for, but there are {len(others)} other questions")
        # A draw of its own for each question: the examples of one do not depend on how many came before.
        examples = drawn(Random(f"gsm8k {seed} {number}"), others, shots)
        blocks = [f"Question: {e['question'].strip()}\nAnswer: {e['answer'].strip()}\n\n" for e in examples]
        prompt = "".join(blocks) + f"Question: {row['question'].strip()}\nAnswer:"
        questions.append(Question(prompt, str(value)))
    return Task("gsm8k", questions, is_right, MAX_TOKENS, stop=("Question:",))
