from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from wellhead.formats import block_fp8, mxfp4
from wellhead.model import weights
from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import CheckpointError, open_checkpoint
from wellhead.model.config_file import load_config
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.numerics import Numerics
from wellhead.model.parameters import load_parameters
from wellhead.model.split import Split
from wellhead.model.stream import load_device_weights
from wellhead.model.tensors import expected_tensors
from wellhead.model.weights import iter_tensors
from wellhead.testing.checkpoint_files import write_checkpoint
from wellhead.testing.checkpoints import random_checkpoint, tiny_config_dict

Named = tuple[str, torch.Tensor]
SMALL = {"num_hidden_layers": 1, "compress_ratios": [4, 0], "num_hash_layers": 1, "n_routed_experts": 2}


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(
        left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8)
    )


def test_written_and_read_back_bit_for_bit(checkpoint_folder: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_folder)
    expected = dict(random_checkpoint(checkpoint.config))
    seen = set()
    for name, tensor in iter_tensors(checkpoint):
        assert same(tensor, expected[name]), name
        seen.add(name)
    assert seen == set(expected) == set(checkpoint.tensors)


def test_layout_on_disk(checkpoint_folder: Path) -> None:
    index = json.loads((checkpoint_folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in checkpoint_folder.glob("*.safetensors"))
    assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    assert set(index["weight_map"].values()) == set(files)
    assert all((checkpoint_folder / name).stat().st_size <= 2_000_000 for name in files)
    codes: dict[str, str] = {}
    for file in files:
        with safe_open(checkpoint_folder / file, framework="pt") as shard:
            codes |= {name: shard.get_slice(name).get_dtype() for name in shard.keys()}
    specs = list(expected_tensors(open_checkpoint(checkpoint_folder).config))
    assert codes == {spec.name: spec.dtype for spec in specs}
    assert set(codes.values()) == {"BF16", "F32", "I64", "I8", "F8_E4M3", "F8_E8M0"}
    assert index["metadata"]["total_size"] == sum(spec.nbytes for spec in specs)


def test_scales_and_packed_weights_come_as_bytes(checkpoint_folder: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_folder)
    expert, dense = "layers.0.ffn.experts.1.w2", "layers.1.attn.wq_b"
    names = [f"{stem}.{part}" for stem in (expert, dense) for part in ("weight", "scale")]
    tensors = dict(iter_tensors(checkpoint, names))
    assert sorted(tensors) == sorted(names)
    assert [tensors[name].dtype for name in names] == [
        torch.uint8,
        torch.uint8,
        torch.float8_e4m3fn,
        torch.uint8,
    ]
    fp4 = mxfp4.dequantize(tensors[names[0]], tensors[names[1]])
    fp8 = block_fp8.dequantize_weight(tensors[names[2]], tensors[names[3]])
    # both hold normal values of variance 1 / inputs
    for matrix in (fp4, fp8):
        assert 0.95 < float(matrix.std()) * matrix.shape[1] ** 0.5 < 1.05


def test_one_file_is_open_at_a_time(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    now: list[str] = []

    class Watched:
        def __init__(self, file: Path, framework: str) -> None:
            self.file, self.inner = file.name, safe_open(file, framework=framework)

        def __enter__(self) -> object:
            now.append(self.file)
            opened.append(self.file)
            assert len(now) == 1
            return self.inner.__enter__()

        def __exit__(self, *details: object) -> None:
            now.remove(self.file)
            self.inner.__exit__(*details)

    monkeypatch.setattr(weights, "safe_open", Watched)
    checkpoint = open_checkpoint(checkpoint_folder)
    backwards = reversed(list(checkpoint.tensors))
    assert sum(1 for _ in iter_tensors(checkpoint, backwards)) == len(checkpoint.tensors)
    assert opened == sorted(set(opened)) and len(opened) > 2


def test_empty_selection_and_unknown_name(checkpoint_folder: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_folder)
    assert list(iter_tensors(checkpoint, [])) == []
    with pytest.raises(ValueError, match=r"tensor 'layers\.9\.x' is not in the checkpoint"):
        next(iter_tensors(checkpoint, ["layers.9.x"]))


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_only_on_a_terminal(
    checkpoint_folder: Path,
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    checkpoint = open_checkpoint(checkpoint_folder)
    assert len(list(iter_tensors(checkpoint, progress=True))) == len(checkpoint.tensors)
    assert ("reading weights" in capsys.readouterr().err) is terminal


def test_writing_refuses_what_the_config_does_not_have(tmp_path: Path) -> None:
    raw = tiny_config_dict(**SMALL)
    complete = dict(random_checkpoint(load_config(raw)))

    def changed(**replaced: torch.Tensor) -> Iterator[Named]:
        return iter((complete | {name.replace("__", "."): tensor for name, tensor in replaced.items()}).items())

    cases: list[tuple[str, Iterator[Named], str]] = [
        ("unknown", iter([("layers.7.x", torch.zeros(1))]), "'layers.7.x' is given twice or not part"),
        ("twice", iter([("norm.weight", complete["norm.weight"])] * 2), "'norm.weight' is given twice"),
        ("shape", changed(norm__weight=torch.zeros(3)), r"is torch\.float32 \[3\], expected BF16 \[256\]"),
        (
            "dtype",
            changed(norm__weight=torch.zeros(256)),
            r"is torch\.float32 \[256\], expected BF16 \[256\]",
        ),
        ("missing", iter([]), r"\d+ tensors of the configuration were not given, such as embed.weight"),
    ]
    for name, tensors, message in cases:
        with pytest.raises(ValueError, match=message):
            write_checkpoint(tmp_path / name, raw, tensors)
    with pytest.raises(ValueError, match=r"'embed\.weight' takes \d+ bytes, shard_bytes is 1000; raise shard_bytes"):
        write_checkpoint(tmp_path / "small", raw, iter(complete.items()), shard_bytes=1000)
    with pytest.raises(ValueError, match="not empty, expected a new folder"):
        write_checkpoint(tmp_path, raw, iter(complete.items()))


def test_strided_tensors_are_written_by_value(tmp_path: Path) -> None:
    raw = tiny_config_dict(**SMALL)
    complete = dict(random_checkpoint(load_config(raw)))
    strided = {name: torch.stack((tensor, tensor), dim=-1)[..., 0] for name, tensor in complete.items()}
    assert not strided["head.weight"].is_contiguous()
    write_checkpoint(tmp_path / "strided", raw, strided.items())
    for name, tensor in iter_tensors(open_checkpoint(tmp_path / "strided")):
        assert same(tensor, complete[name]), name


@pytest.mark.parametrize("expert_dtype", ["fp4", "fp8"])
def test_random_checkpoints_follow_the_table(expert_dtype: str, tmp_path: Path) -> None:
    raw = tiny_config_dict(**SMALL, expert_dtype=expert_dtype)
    write_checkpoint(tmp_path / "random", raw, random_checkpoint(load_config(raw), seed=3))
    assert open_checkpoint(tmp_path / "random").config.expert_dtype == expert_dtype


def test_random_tensors_depend_on_seed_and_name() -> None:
    config = load_config(tiny_config_dict(**SMALL))
    first, again, other = (dict(random_checkpoint(config, seed)) for seed in (1, 1, 2))
    assert all(same(first[name], again[name]) for name in first)
    name = "layers.0.attn.wkv.weight"
    assert not same(first[name], other[name])
    assert not same(first["layers.0.attn_norm.weight"], first["layers.0.ffn_norm.weight"])
    longer = dict(random_checkpoint(load_config(tiny_config_dict()), 1))
    assert same(longer["layers.0.attn.wq_a.weight"], first["layers.0.attn.wq_a.weight"])


def test_random_values_are_usable() -> None:
    config = load_config(tiny_config_dict())
    tensors = dict(random_checkpoint(config))
    table = tensors["layers.0.ffn.gate.tid2eid"]
    assert table.shape == (512, 2) and int(table.min()) == 0 and int(table.max()) == 7
    assert bool((table[:, 0] != table[:, 1]).all())
    mixing = tensors["layers.0.hc_attn_base"][8:].reshape(4, 4)
    assert bool((mixing.argmax(1) == torch.arange(4)).all())
    scale = tensors["layers.0.hc_ffn_scale"]
    assert bool(((scale >= 0.1) & (scale <= 1)).all())
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point:
            assert bool(tensor.float().isfinite().all()), name


def test_experts_of_a_large_model_stay_packed_and_answer_the_same() -> None:
    config = load_config(tiny_config_dict())
    tensors = list(random_checkpoint(config, seed=4))
    unpacked = load_parameters(tensors, config, with_mtp=False)
    packed = load_parameters(tensors, config, with_mtp=False, unpacked_bytes=0)
    name = "layers.1.ffn.experts.w2"
    assert packed[name].dtype == torch.uint8 and packed[f"{name}.scale"].dtype == torch.uint8
    assert unpacked[name].dtype == torch.float32 and f"{name}.scale" not in unpacked
    batch = Batch.build([Chunk(list(range(40)), 0, [0], 0, "all")])
    logits = []
    for named in (unpacked, packed):
        model = DeepseekV4(named, config, Numerics.named("checkpoint"))
        logits.append(model.logits(model.forward(batch, model.allocate(1, 1))))
    assert torch.equal(*logits)


def test_a_file_cut_after_it_was_opened_is_named(damaged: Path) -> None:
    checkpoint = open_checkpoint(damaged)
    file = max(damaged.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=f"{file.name}: ends at byte"):
        load_device_weights(checkpoint, Split(), "cpu", with_mtp=True)
    with pytest.raises(CheckpointError, match=f"{file.name}: .*changed after it was opened"):
        list(iter_tensors(checkpoint))
    with pytest.raises(CheckpointError, match="truncated by 1000 bytes"):
        open_checkpoint(damaged)


def test_a_disk_that_does_not_read_is_said_with_the_file(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    checkpoint = open_checkpoint(damaged)
    monkeypatch.setattr("os.preadv", fail)
    with pytest.raises(CheckpointError, match=r"model-.*\.safetensors: not readable at byte \d+ .*Input/output"):
        load_device_weights(checkpoint, Split(), "cpu")
