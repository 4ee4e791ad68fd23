"""Runs every interpreted_*.py of this folder in a process of its own, under Triton's interpreter.

Triton decides when a kernel is defined whether it is compiled or interpreted, so one process cannot do both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("interpreted_*.py"))


def test_there_are_files() -> None:
    assert len(FILES) >= 1


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem.removeprefix("interpreted_"))
def test_under_the_interpreter(file: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout
