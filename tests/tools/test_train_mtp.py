"""The MTP layer's trainer: its forward against the engine's, what it counts, that it learns, what it writes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tools.train_tiny import batches, export
from tools.train_tiny.config import CONFIG
from tools.train_tiny.draft_model import DRAFTS, PREFIX, DraftModel, layer_names, warm_start
from tools.train_tiny.initial import init_weights
from tools.train_tiny.model import TrainModel
from tools.train_tiny.patch import patch, read_weights
from tools.train_tiny.train_mtp import TINY, DraftTrainer, drafts_within

from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import open_checkpoint
from wellhead.model.config_file import load_config
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.numerics import Numerics
from wellhead.model.parameters import load_parameters
from wellhead.model.weights import iter_tensors


@torch.inference_mode()
def test_a_chain_of_drafts_is_the_engines() -> None:
    """Same weights, fp32, nothing rounded: the layer applied to its own output behind page and window."""
    config = load_config(CONFIG)
    weights = init_weights(CONFIG, seed=3)
    named = load_parameters(export.official(weights), config, with_mtp=True)
    seen = {name: named[name.removesuffix(".weight")] for name in weights}
    ids = torch.randint(2, config.vocab_size, (1, 256), generator=torch.Generator().manual_seed(0))
    exact = {"dtype": torch.float32, "quantize": False, "device": "cpu"}
    streams, _, _ = TrainModel(CONFIG, **exact).streams(seen, ids, sparse=True)  # type: ignore[arg-type]
    trainer = DraftModel(CONFIG, **exact)  # type: ignore[arg-type]
    chain = trainer.chain(seen, streams, ids)

    model, origin = DeepseekV4(named, config, Numerics.named("exact")), 200
    state, tokens = model.allocate(2, 1), ids[0].tolist()
    batch = Batch.build([Chunk(tokens[: origin + 1], 0, [0, 1], 0, "last")])
    found = model.draft(model.forward(batch, state), ids[0, 1 : origin + 2], batch, state)
    for draft in range(DRAFTS):
        expected = trainer.logits(seen, chain[draft][:, origin], PREFIX)
        difference = (model.draft_logits(found[-1:]) - expected).abs().max() / expected.abs().max()
        assert float(difference) < 1e-4, draft
        at = origin + draft + 1
        batch = Batch.build([Chunk([tokens[at]], at, [0, 1], 0, "last")])
        found = model.draft(found[-1:], ids[0, at + 1 : at + 2], batch, state)


def test_drafts_are_counted_within_their_answer() -> None:
    rows = batches.Rows(*(np.full((1, batches.ANSWERS), fill, np.int16) for fill in (0, 0, -1, -1, -1)))
    rows.position[0, :7] = [5, 6, 7, 8, 20, 21, 30]
    rows.target[0, :7] = 9
    rows.example[0, :7] = [1, 1, 1, 1, 2, 2, 2]
    assert drafts_within(rows)[0, :8].tolist() == [3, 2, 1, 0, 1, 0, 0, 0]


def test_a_few_steps_on_one_batch_teach_it() -> None:
    weights = read_weights(TINY)
    warm_start(weights, CONFIG["num_hidden_layers"], 1.0)
    before = {name: t.clone() for name, t in weights.items()}
    tok = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    rows = batches.make_rows(tok, random.Random(1), 1, 0, 128, test=False)
    trainer, losses = DraftTrainer(weights, (1, 0, 128), "cpu", compiled=False), []
    trainer.optimizers.set_rates(0.01, 0.002)
    trainer.load(rows)
    for _ in range(6):
        trainer.step(train=True)
        losses.append(trainer.losses.tolist())
    assert len(losses[0]) == DRAFTS
    assert all(last < 0.7 * first for first, last in zip(losses[0], losses[-1], strict=True)), losses
    changed = {name for name, t in trainer.weights.items() if not torch.equal(t.detach(), before[name])}
    assert changed == set(trainer.trained) == {n for n in layer_names(weights) if not n.endswith("gate.bias")}


def test_a_patched_checkpoint_has_the_new_layer_and_every_other_byte(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(TINY, folder)
    weights = read_weights(folder)
    for name in layer_names(weights):
        weights[name] = weights[name] + 0.5
    wanted = dict(export.official(weights, PREFIX))
    changed, kept = patch(folder, wanted.items())
    stored = open_checkpoint(folder).tensors
    total = sum(entry.nbytes for name, entry in stored.items() if name.startswith(PREFIX))
    assert 0.5 * total < changed <= total
    assert kept + total == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    found, original = (dict(iter_tensors(open_checkpoint(path))) for path in (folder, TINY))
    for name, tensor in original.items():
        expected = wanted.get(name, tensor).view(torch.uint8)
        assert torch.equal(found[name].view(torch.uint8), expected), name
    with pytest.raises(ValueError, match=r"mtp.0.norm.weight is torch.bfloat16 \[2\], stored BF16 \[256\]"):
        patch(folder, [(f"{PREFIX}norm.weight", torch.zeros(2, dtype=torch.bfloat16))])
