"""What every line of benchmarks/results says of where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
WITHOUT_COMMAND = {"ops.jsonl": 275, "step.jsonl": 64}  # written before their lines had one


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.name)
def test_records_name_card_versions_commit_and_command(path: Path) -> None:
    older, card = WITHOUT_COMMAND.get(path.name, 0), "device" if path.name == "load_check.jsonl" else "gpu"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        record = json.loads(line)
        needed = {card, "torch", "triton", "commit", "date"} | ({"command"} if number > older else set())
        missing = sorted(needed - record.keys())
        assert not missing, f"{path.name}:{number} lacks {', '.join(missing)}"
        commit = record["commit"]
        assert len(commit) == 12 and set(commit) <= set("0123456789abcdef"), f"{path.name}:{number}: {commit!r}"
        assert "/root/" not in line and "/home/" not in line, f"{path.name}:{number} names a machine's path"
