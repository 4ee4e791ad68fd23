"""GSM8K: the prompt, the draw of its examples, the extraction of numbers, and bad files."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from fakes.llm import FakeLLM
from wellhead.evals.gsm8k import is_right, last_number, load_gsm8k
from wellhead.evals.records import DataError
from wellhead.evals.task import ask

ROWS = [
    {"question": f"What is {i} and {i}?", "answer": f"It is <<{i}+{i}={2 * i}>>.\n#### {2 * i:,}"} for i in range(9)
]


def written(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so he has 18 apples.", "18"),
        ("It costs $1,234.50.", "1234.50"),
        ("She pays $5.", "5"),
        ("The change is -7 degrees", "-7"),
        ("a loss of -$20 in all", "-20"),
        ("a loss of $-20 in all", "-20"),
        ("10 - 3 = 7 and 12-5", "5"),
        ("2 of 3. #### 70,000", "70000"),
        ("#### 12\nQuestion 4", "12"),
        ("about .5", ".5"),
        ("1,000,000 people", "1000000"),
        ("that is 50%", "50"),
    ],
)
def test_last_number(text: str, value: str) -> None:
    assert last_number(text) == Decimal(value)


def test_no_number() -> None:
    assert last_number("I do not know.") is None
    assert not is_right("I do not know.", "4")


def test_equal_values_match_in_any_spelling() -> None:
    assert is_right("The answer is $72.00.", "72")
    assert not is_right("The answer is 720.", "72")


def test_examples_are_seeded_and_never_the_question(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[3]]  # the same question twice: neither may be an example of the other
    path = written(tmp_path, rows)
    task = load_gsm8k(path, shots=8, seed=1)
    assert len(task.questions) == len(rows)
    for row, question in zip(rows, task.questions, strict=True):
        assert question.prompt.count(row["question"]) == 1
        assert question.prompt.endswith(f"Question: {row['question']}\nAnswer:")
        assert question.prompt.count("Question: ") == 9
        assert question.prompt.count("####") == 8
    prompts = [question.prompt for question in task.questions]
    assert prompts == [question.prompt for question in load_gsm8k(path, 8, 1).questions]
    assert prompts != [question.prompt for question in load_gsm8k(path, 8, 2).questions]
    assert prompts[:4] == [question.prompt for question in load_gsm8k(path, 8, 1, count=4).questions]


def test_scored_against_the_final_number(tmp_path: Path) -> None:
    task = load_gsm8k(written(tmp_path, ROWS), shots=0)
    llm = FakeLLM(lambda prompt: " It is 8.\n#### 8\n\nQuestion: 1 and 1?" if "4 and 4" in prompt else " 1")
    result = ask(llm, [task])[0]
    assert (result.right, result.count) == (1, 9)


def test_bad_files_name_file_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read"):
        load_gsm8k(tmp_path / "absent.jsonl")
    with pytest.raises(
        DataError, match=r"gsm8k\.jsonl, line 2: expected text in column 'answer'; the row has 'question'"
    ):
        load_gsm8k(written(tmp_path, [ROWS[0], {"question": "Why?"}]))
    with pytest.raises(DataError, match=r"gsm8k\.jsonl, line 2: column 'answer' must end in '#### n'"):
        load_gsm8k(written(tmp_path, [ROWS[0], {"question": "Why?", "answer": "42"}]), shots=1)
    with pytest.raises(DataError, match=r"5 examples asked for, but there are 1 other questions"):
        load_gsm8k(written(tmp_path, ROWS[:2]))
    with pytest.raises(DataError, match=r"no rows; expected columns 'question', 'answer'"):
        load_gsm8k(written(tmp_path, []))
    with pytest.raises(DataError, match=r"x\.parquet: expected a file name ending in \.jsonl or \.csv"):
        load_gsm8k(tmp_path / "x.parquet")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(ROWS[0]) + "\n{nope}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: not JSON"):
        load_gsm8k(bad)
    with pytest.raises(ValueError, match="shots must be 0 or more, got -1"):
        load_gsm8k(written(tmp_path, ROWS), shots=-1)
