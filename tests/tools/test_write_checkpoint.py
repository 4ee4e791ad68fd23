"""Checkpoints with random bytes: official on disk, the same for a seed, loaded as they were written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tools import load_check, write_checkpoint
from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import open_checkpoint
from wellhead.model.load import load_model
from wellhead.model.numerics import Numerics
from wellhead.model.shard import read_header
from wellhead.model.split import Split
from wellhead.model.stream import load_device_weights
from wellhead.model.unpack import official_tensors
from wellhead.model.weights import iter_tensors
from wellhead.testing.checkpoints import tiny_config_dict

RAW = tiny_config_dict(num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], num_hash_layers=1)
SMALL = {"shard_bytes": 3_000_000, "pool_bytes": 1 << 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("written") / "random"
    write_checkpoint.write(written, RAW, seed=3, **SMALL)
    return written


def test_it_is_an_official_checkpoint(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert sum(len(read_header(file)) for file in folder.glob("*.safetensors")) == len(checkpoint.tensors)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3 and all(file.stat().st_size < 3_100_000 for file in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == checkpoint.nbytes
    assert json.loads((folder / "config.json").read_text()) == RAW


def test_it_loads_byte_for_byte(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    weights, _ = load_device_weights(checkpoint, Split(), "cpu", with_mtp=True)
    found = dict(official_tensors(weights))
    for name, tensor in iter_tensors(checkpoint):
        assert torch.equal(found[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), name
    source = write_checkpoint.RandomBytes(checkpoint.config, 3, SMALL["pool_bytes"])
    for spec in list(write_checkpoint.expected_tensors(checkpoint.config))[::7]:
        written = torch.cat(list(source.chunks(spec)))
        stored = checkpoint.tensors[spec.name]
        with stored.file.open("rb") as stream:
            stream.seek(stored.begin)
            assert stream.read(stored.nbytes) == written.numpy().tobytes(), spec.name


def test_the_same_seed_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        write_checkpoint.write(tmp_path / str(seed), RAW, seed=seed, threads=1, **SMALL)
    for file in sorted(folder.iterdir()):
        assert (tmp_path / "3" / file.name).read_bytes() == file.read_bytes(), file.name
    shards = [file.name for file in folder.glob("*.safetensors")]
    assert all((tmp_path / "4" / name).read_bytes() != (folder / name).read_bytes() for name in shards)


def test_the_model_runs(folder: Path) -> None:
    model = load_model(open_checkpoint(folder), Numerics.named("checkpoint"))
    tokens = list(range(2, 262))
    streams = model.forward(Batch.build([Chunk(tokens, 0, [0, 1], 0, "last")]), model.allocate(2, 1))
    logits = model.logits(streams[-4:])
    assert logits.isfinite().all() and 0.3 < logits.std() < 3


@pytest.mark.parametrize("rank", ["0", "1"])
def test_load_check_finds_nothing(folder: Path, capsys: pytest.CaptureFixture[str], rank: str) -> None:
    arguments = [str(folder), "--device", "cpu", "--rank", rank, "--world", "2", "--mtp", "--samples", "100"]
    assert load_check.main(arguments) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["compared"] == 100 and line["wrong"] == [] and line["gb_per_s"] > 0


def test_load_check_finds_a_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(folder)
    weights, _ = load_device_weights(checkpoint, Split(), "cpu")
    weights.layers[1].moe.experts.w13[2, 5, 7] ^= 1
    compared, wrong = load_check.differing(checkpoint, weights, 10_000, 0)
    # row 5 is up row 2
    assert compared > 200 and wrong == ["layers.1.ffn.experts.2.w3.weight"]


def test_a_folder_that_is_not_empty_is_left_alone(folder: Path) -> None:
    with pytest.raises(ValueError, match="not empty"):
        write_checkpoint.write(folder, RAW)


def test_the_command_writes_a_shorter_model_and_a_tokenizer(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(RAW))
    (tmp_path / "tokenizer.json").write_text("{}")
    arguments = [str(tmp_path / "out"), "--config", str(config), "--layers", "1", "--tokenizer", str(tmp_path)]
    assert write_checkpoint.main(arguments) == 0
    assert open_checkpoint(tmp_path / "out").config.compress_ratios == (0, 0)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
