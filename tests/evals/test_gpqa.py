"""GPQA: shuffled choices, the stated letter, both file forms, and bad files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fakes.llm import FakeLLM
from wellhead.evals.gpqa import COLUMNS, LETTERS, load_gpqa, stated_letter
from wellhead.evals.records import DataError
from wellhead.evals.task import ask

ROWS = [
    dict(zip(COLUMNS, (f"Question {i},\nin two lines?", f"right{i}", f"x{i}", f"y{i}", f"z{i}"), strict=True))
    for i in range(40)
]


def as_csv(tmp_path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    path = tmp_path / "gpqa.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_choices_are_shuffled_with_the_seed(tmp_path: Path) -> None:
    task = load_gpqa(as_csv(tmp_path, ROWS))
    for i, question in enumerate(task.questions):
        assert f"{question.answer}) right{i}\n" in question.prompt + "\n"
        for choice in (f"x{i}", f"y{i}", f"z{i}"):
            assert sum(f"{letter}) {choice}\n" in question.prompt for letter in LETTERS) == 1
        assert question.chat
    assert {question.answer for question in task.questions} == set(LETTERS)
    again, other = load_gpqa(as_csv(tmp_path, ROWS)), load_gpqa(as_csv(tmp_path, ROWS), seed=1)
    assert list(task.questions) == list(again.questions) != list(other.questions)
    assert list(load_gpqa(as_csv(tmp_path, ROWS), count=3).questions) == list(task.questions[:3])


def test_json_lines_give_the_same_task(tmp_path: Path) -> None:
    path = tmp_path / "gpqa.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert list(load_gpqa(path).questions) == list(load_gpqa(as_csv(tmp_path, ROWS)).questions)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Because of this.\nAnswer: C", "C"),
        ("**Answer: B**", "B"),
        ("Answer: **D**.", "D"),
        ("The correct answer is (A).", "A"),
        ("The final answer is $\\boxed{C}$.", "C"),
        ("Answer: A? No.\nANSWER: B", "B"),
        ("B", "B"),
        (" (D). ", "D"),
        ("The answer is Beryllium", None),
        ("The answer is A's problem", None),
        ("A good question.", None),
        ("", None),
    ],
)
def test_stated_letter(text: str, letter: str | None) -> None:
    assert stated_letter(text) == letter


def test_scored_by_the_letter(tmp_path: Path) -> None:
    task = load_gpqa(as_csv(tmp_path, ROWS))
    expected = sum(question.answer == "B" for question in task.questions)
    assert ask(FakeLLM(lambda prompt: "Answer: B"), [task])[0].right == expected > 0


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = as_csv(tmp_path, ROWS)
    plain = load_gpqa(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_gpqa(path).questions == plain.questions


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gpqa\.csv, line 3: expected text in column 'Incorrect Answer 3'"):
        load_gpqa(as_csv(tmp_path, ROWS, COLUMNS[:-1]))
    with pytest.raises(DataError, match=r"cannot be read"):
        load_gpqa(tmp_path / "absent.csv")
