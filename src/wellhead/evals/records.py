"""Evaluation data files: JSON lines and CSV, read with errors that name file, line and column."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """An evaluation data file that is missing, empty or of another shape than expected."""


def read_records(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a .jsonl or .csv file in UTF-8, its byte order mark apart; each row has the text `columns`.

    Raises DataError naming the file, the line and the column that was expected.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file name ending in {' or '.join(readers)}")
    try:
        numbered = readers[path.suffix](path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not numbered:
        raise DataError(f"{path}: no rows; expected columns {', '.join(map(repr, columns))}")
    for line, row in numbered:
        for column in columns:
            if not isinstance(row.get(column), str) or not row[column].strip():
                has = ", ".join(repr(name) for name in row if isinstance(name, str)) or "nothing"
                raise DataError(f"{path}, line {line}: expected text in column {column!r}; the row has {has}")
    return numbered


def _read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {line}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {line}: expected a JSON object, got {type(row).__name__}")
        rows.append((line, row))
    return rows


def _read_csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        # line_num counts physical lines, so a quoted cell that spans lines reports its last one.
        return [(reader.line_num, row) for row in reader]
