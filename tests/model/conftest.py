"""A tiny checkpoint on disk, written once; tests that damage one copy it first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wellhead.model.config_file import load_config
from wellhead.model.published import published_config
from wellhead.testing.checkpoint_files import write_checkpoint
from wellhead.testing.checkpoints import random_checkpoint, tiny_config_dict

SHARD_BYTES = 2_000_000


@pytest.fixture
def published() -> Callable[[str], dict[str, Any]]:
    return lambda name: published_config(f"v4-{name}")


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several shards, every layer kind, two layers fewer than the default to stay quick."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    config = tiny_config_dict(
        num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], num_hash_layers=1, n_routed_experts=4
    )
    write_checkpoint(folder, config, random_checkpoint(load_config(config)), SHARD_BYTES)
    return folder


@pytest.fixture
def damaged(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A private copy to damage."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "copy"))
