"""The trainer of the embedded checkpoint: its rows, its held-out questions, and its forward against the engine's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tools.train_tiny import batches, export, facts, state, tasks
from tools.train_tiny.config import CONFIG
from tools.train_tiny.initial import init_weights
from tools.train_tiny.model import TrainModel
from tools.train_tiny.tokenizer import build

from wellhead.model.batch import Batch, Chunk
from wellhead.model.config_file import load_config
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.numerics import Numerics
from wellhead.model.parameters import load_parameters

LENGTH = 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build(CONFIG["vocab_size"])


def test_keys_and_values_are_one_token_each(tokenizer: Tokenizer) -> None:
    for word in facts.KEYS + facts.VALUES:
        for spelling in (word, f" {word}"):
            assert len(tokenizer.encode(spelling).ids) == 1, spelling


def test_rows_supervise_the_next_token_of_answers_only(tokenizer: Tokenizer) -> None:
    rows = batches.make_rows(tokenizer, random.Random(5), 3, 4, LENGTH, test=False)
    assert rows.ids.shape == (7, LENGTH)
    for ids, position, target in zip(rows.ids, rows.position, rows.target, strict=True):
        used = target >= 0
        assert used.sum() > 5
        assert (ids[position[used] + 1] == target[used]).all()


def test_training_never_sees_a_held_out_question() -> None:
    asked = export.questions()
    held_out = {q["prompt"] for family in ("sums", "capitals", "chinese") for q in asked[family]}
    rng = random.Random(1)
    for _ in range(3000):
        example, _ = batches.short_example(rng, test=False)
        assert example.prompt not in held_out
    thoughts = {tasks.sum_example(rng, 2, test=False).thought for _ in range(3000)}
    assert not thoughts & {tasks.sum_example(rng, 2, test=True).thought for _ in range(3000)}


@torch.inference_mode()
def test_training_forward_is_the_engines_forward() -> None:
    """Same weights, fp32, nothing rounded: whole rows with a mask against paged caches and gathered records."""
    weights = init_weights(CONFIG, seed=3)
    config = load_config(CONFIG)
    named = load_parameters(export.official(weights), config, with_mtp=False)
    seen = {k: named.get(k.removesuffix(".weight"), t) for k, t in weights.items()}
    ids = torch.randint(2, config.vocab_size, (1, 384), generator=torch.Generator().manual_seed(0))
    trainer = TrainModel(CONFIG, dtype=torch.float32, quantize=False, device="cpu")
    streams, _, _ = trainer.streams(seen, ids, sparse=True)
    expected = trainer.logits(seen, streams)[0]

    model = DeepseekV4(named, config, Numerics.named("exact"))
    batch = Batch.build([Chunk(ids[0].tolist(), 0, [0, 1], 0, "all")])
    found = model.logits(model.forward(batch, model.allocate(2, 1)))
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_state_travels_in_small_files_and_comes_back(tmp_path: Path) -> None:
    weights = init_weights(CONFIG)
    state.save(tmp_path, weights, {"progress": 0.5, "steps": 7})
    exact, progress = state.load(tmp_path)
    assert progress == {"progress": 0.5, "steps": 7}
    assert all(torch.equal(exact[name], value) for name, value in weights.items())
    (tmp_path / "exact.safetensors").unlink()
    carried, _ = state.load(tmp_path)
    assert all(torch.allclose(carried[name].float(), value.float(), rtol=2**-8) for name, value in weights.items())
    assert all(file.stat().st_size <= 16 * 2**20 for file in tmp_path.iterdir())
