"""A small random checkpoint with a byte tokenizer, loaded once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from wellhead.engine.llm import LLM
from wellhead.model.config_file import load_config
from wellhead.testing.checkpoint_files import write_checkpoint
from wellhead.testing.checkpoints import random_checkpoint, tiny_config_dict

BEGIN, END = "<begin>", "<end>"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, one of each kind; ids: begin 0, end 1, then a byte each; the last rows of the vocabulary
    unused.
    """
    folder = tmp_path_factory.mktemp("engine") / "model"
    raw = tiny_config_dict(
        num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], num_hash_layers=1, n_routed_experts=4,
        vocab_size=264, index_topk=32, max_position_embeddings=2048,
    )  # fmt: skip
    write_checkpoint(folder, raw, random_checkpoint(load_config(raw), seed=4))
    vocab = {BEGIN: 0, END: 1}
    vocab |= {
        piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=2)
    }
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([BEGIN, END])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": BEGIN, "eos_token": END}))
    return folder


@pytest.fixture(scope="session")
def llm(folder: Path) -> LLM:
    return LLM(folder, progress=False, num_pages=6, max_running=4, chunk_tokens=64)
