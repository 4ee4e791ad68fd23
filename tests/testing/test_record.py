"""What a record says of the command behind it."""

from __future__ import annotations

import pytest

from wellhead.testing.record import command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bench step --layers 16 --jsonl /tmp/a.jsonl --batch 1 8", "wellhead bench step --layers 16 --batch 1 8"),
        ("bench step --jsonl=/tmp/a.jsonl --picture /tmp/a.svg", "wellhead bench step"),
        ("bench serve --api-key hush --each each.jsonl", "wellhead bench serve --api-key KEY"),
        ("bench serve --api-key=hush --note hush-hush", "wellhead bench serve --api-key=KEY --note hush-hush"),
        ("bench moe --jsonl", "wellhead bench moe"),
    ],
)
def test_commands_name_no_file_they_write_and_no_key(words: str, said: str) -> None:
    assert command(words.split(), "hush") == said


def test_commands_are_words_of_a_shell() -> None:
    assert command(["bench", "moe", "--case", "M=1, all"]) == "wellhead bench moe --case 'M=1, all'"
