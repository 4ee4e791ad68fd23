"""The embedded model widened by zeros: the same bits, in a shape that eight ranks divide."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from tools import widen_tiny
from wellhead.dispatch import capability
from wellhead.model.choices import choose_ops
from wellhead.model.config_file import load_config
from wellhead.model.split import Split

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("widened") / "tiny"
    widen_tiny.write(written)
    return written


def test_asked_for_help_it_writes_nothing(tmp_path: Path) -> None:
    """It once wrote a checkpoint into a folder of that name."""
    told = subprocess.run(
        [sys.executable, "-m", "tools.widen_tiny", "--help"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src")))}, check=True,
    )  # fmt: skip
    assert "FOLDER" in told.stdout and not list(tmp_path.iterdir())


def test_it_computes_the_same_bits(folder: Path) -> None:
    from wellhead.engine.llm import LLM

    one, other = (LLM(model, progress=False, num_pages=2) for model in (None, str(folder)))
    ids = one.encode("15 + 27 =")
    assert other.encode("15 + 27 =") == ids and torch.equal(one.logits(ids), other.logits(ids))


@pytest.mark.parametrize("experts", ["width", "expert"])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_eight_ranks_divide_it(folder: Path, world: int, experts: str) -> None:
    config, split = load_config(folder), Split(0, world, experts)  # type: ignore[arg-type]
    split.check(config)
    for arch in ("sm90", "sm120"):
        choose_ops(config, split, capability.features_of(capability.simulated(arch), "3.6.0"))


def test_halves_lie_at_the_beginning_and_the_middle() -> None:
    found = widen_tiny.widened(torch.arange(1, 9).view(2, 4), (4, 8), 0)
    assert found.tolist() == [[1, 2, 0, 0, 3, 4, 0, 0], [0] * 8, [5, 6, 0, 0, 7, 8, 0, 0], [0] * 8]


def test_a_folder_in_use_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="not empty, expected a new folder"):
        widen_tiny.write(folder)
