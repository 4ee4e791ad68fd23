from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from oracles.transformers_names import transformers_name
from wellhead.model import locate
from wellhead.model.checkpoint import CheckpointError, open_checkpoint, resolve_model
from wellhead.model.tensors import expected_tensors
from wellhead.testing.checkpoints import tiny_config_dict

INDEX = "model.safetensors.index.json"
NAME = "layers.1.attn.wkv.weight"


def index_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / INDEX).read_text()))


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = index_of(folder)
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def shard_of(folder: Path, name: str) -> Path:
    return folder / index_of(folder)["weight_map"][name]


def edit_shard(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def message_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def test_sound_checkpoint(checkpoint_folder: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_folder)
    specs = list(expected_tensors(checkpoint.config))
    assert list(checkpoint.tensors) == [spec.name for spec in specs]
    assert checkpoint.nbytes == sum(spec.nbytes for spec in specs)
    assert len(list(checkpoint_folder.glob("*.safetensors"))) > 2


@pytest.mark.parametrize("keep", [-1, -5000, 4, 0, 400])
def test_truncated_shard(damaged: Path, keep: int) -> None:
    path = shard_of(damaged, NAME)
    path.write_bytes(path.read_bytes()[:keep])
    message = message_of(damaged)
    assert path.name in message and "truncated" in message and "download the file again" in message
    # the tensors of that file are not reported a second time, one by one
    assert "1 problem:" in message and NAME not in message


def test_bytes_after_the_tensors(damaged: Path) -> None:
    path = shard_of(damaged, NAME)
    path.write_bytes(path.read_bytes() + b"\0\0")
    assert re.search(rf"{path.name}: \d+ bytes of tensors, expected \d+;", message_of(damaged))


def test_header_that_is_not_json_or_not_consistent(damaged: Path) -> None:
    path = shard_of(damaged, NAME)
    for header, expected in [
        (b"{...", "its header is not JSON"),
        (b"[]", "its header is no JSON object"),
        (b"[" * 100_000, "its header is not JSON"),
        (b'{"x": {"dtype": "F32", "shape": [2]}}', "tensor x: malformed header entry"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}', "tensor x: malformed header entry"),
        (
            b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            "tensor x: 4 bytes, expected 8 for F32",
        ),
        (
            b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            "tensor x is at byte 4, expected 0",
        ),
    ]:
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        assert expected in message_of(damaged)


def test_git_lfs_pointer(damaged: Path) -> None:
    path = shard_of(damaged, NAME)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert f"{path.name}: a git-lfs pointer, not the weights; run `git lfs pull`" in message_of(damaged)


def test_missing_shard(damaged: Path) -> None:
    path = shard_of(damaged, NAME)
    path.unlink()
    count = list(index_of(damaged)["weight_map"].values()).count(path.name)
    assert f"{path.name}: no such file, expected with {count} tensors; download it" in message_of(damaged)


def test_stacked_experts_are_named_once(damaged: Path) -> None:
    """As transformers' save_pretrained writes them."""
    tensors = {
        transformers_name(name): tensor
        for path in damaged.glob("*.safetensors") for name, tensor in load_file(path).items()
    }  # fmt: skip
    experts = [name for name in tensors if ".mlp.experts." in name and name.startswith("model.layers.")]
    for name in experts:
        del tensors[name]
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.zeros(4, 256, 256, dtype=torch.bfloat16)
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.zeros(4, 256, 128, dtype=torch.bfloat16)
    for path in damaged.glob("*.safetensors*"):
        path.unlink()
    save_file(tensors, damaged / "model.safetensors")
    message = message_of(damaged)
    assert experts and "1 problem:" in message
    assert re.search(
        r"experts are stacked in 3 layers \(tensor model\.layers\.0\.mlp\.experts\.(gate_up|down)_proj is BF16 \[4, .*"
        r"expected each expert's own, such as layers\.0\.ffn\.experts\.0\.w1\.weight I8 .*; use the official weights",
        message,
    )


def test_tensor_missing_from_index(damaged: Path) -> None:
    edit_index(damaged, lambda weight_map: weight_map.pop(NAME))
    assert f"tensor {NAME} is in no file, expected F8_E4M3 [512, 256]" in message_of(damaged)


def test_index_places_a_tensor_in_a_file_that_lacks_it(damaged: Path) -> None:
    path = shard_of(damaged, NAME)
    edit_shard(path, lambda tensors: tensors.pop(NAME))
    message = message_of(damaged)
    assert "1 problem:" in message
    assert f"{path.name}: lacks tensor {NAME}, expected there by {INDEX}" in message


@pytest.mark.parametrize("elsewhere", ["../model.safetensors", "/etc/passwd", "weights.bin", 3])
def test_index_points_out_of_the_folder(damaged: Path, elsewhere: str) -> None:
    edit_index(damaged, lambda weight_map: weight_map.update({NAME: elsewhere}))
    assert f"{INDEX}: names {str(elsewhere)!r}, expected a .safetensors file of this folder" in message_of(damaged)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        (f'{{"metadata": {"9" * 5000}}}', "not readable as JSON"),
        ('{"weight_map": 3}', "weight_map is int"),
    ],
)
def test_broken_index(damaged: Path, content: str, expected: str) -> None:
    (damaged / INDEX).write_text(content)
    message = message_of(damaged)
    assert INDEX in message and expected in message


def test_wrong_shape_and_wrong_dtype(damaged: Path) -> None:
    path = shard_of(damaged, NAME)
    edit_shard(path, lambda tensors: tensors.update({NAME: tensors[NAME][:, :128].contiguous()}))
    assert f"{path.name}: tensor {NAME} is F8_E4M3 [512, 128], expected F8_E4M3 [512, 256]" in message_of(damaged)
    edit_shard(path, lambda tensors: tensors.update({NAME: torch.zeros(512, 256, dtype=torch.bfloat16)}))
    assert f"tensor {NAME} is BF16 [512, 256], expected F8_E4M3 [512, 256]; use the official" in message_of(damaged)


def test_two_tensors_of_one_meaning(damaged: Path) -> None:
    name, other = "norm.weight", "model.norm.weight"
    path = shard_of(damaged, name)
    edit_shard(path, lambda tensors: tensors.update({other: tensors[name].clone()}))
    edit_index(damaged, lambda weight_map: weight_map.update({other: path.name}))
    assert f"tensors {name} and {other} are both {name}; keep one of them" in message_of(damaged)


def test_all_problems_are_counted_and_ten_shown(damaged: Path) -> None:
    names = [name for name in index_of(damaged)["weight_map"] if name.endswith("norm.weight")]
    assert len(names) > 12
    edit_index(damaged, lambda weight_map: [weight_map.pop(name) for name in names])
    message = message_of(damaged)
    assert f"{len(names)} problems:" in message
    assert message.count("is in no file") == 10
    assert message.endswith(f"... and {len(names) - 10} more")


def test_tensors_that_the_model_does_not_have_are_not_looked_at(damaged: Path) -> None:
    extra = {"mtp.0.embed.weight": torch.zeros(4), "vision.patch.weight": torch.zeros(2)}
    save_file(extra, damaged / "extra.safetensors")
    edit_index(damaged, lambda weight_map: weight_map.update(dict.fromkeys(extra, "extra.safetensors")))
    checkpoint = open_checkpoint(damaged)
    assert list(checkpoint.tensors) == [spec.name for spec in expected_tensors(checkpoint.config)]


def test_single_file_with_transformers_names(damaged: Path) -> None:
    merged = {
        transformers_name(name): tensor.clone()
        for path in damaged.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    for path in damaged.glob("*.safetensors*"):
        path.unlink()
    save_file(merged, damaged / "model.safetensors")
    checkpoint = open_checkpoint(damaged)
    assert checkpoint.tensors[NAME].name == "model.layers.1.self_attn.kv_proj.weight"
    assert len(checkpoint.tensors) == len(merged)


@pytest.mark.parametrize(
    "file_name, expected",
    [
        ("pytorch_model.bin", "found .bin files, never read here; get the safetensors files"),
        ("model.gguf", "found .gguf files, never read here"),
        (
            "model-00001-of-00002.safetensors",
            "found 1 shards (model-00001-of-00002.safetensors ...) and no index",
        ),
        ("readme.txt", "found no weights; download them"),
    ],
)
def test_folder_without_usable_weights(tmp_path: Path, file_name: str, expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config_dict()))
    (tmp_path / file_name).write_bytes(b"\x80\x04")
    message = message_of(tmp_path)
    assert f"expected {INDEX} or model.safetensors" in message and expected in message


def test_config_of_another_model_or_quantization(damaged: Path) -> None:
    path = damaged / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"model_type": "llama"}))
    assert "model_type is 'llama', expected 'deepseek_v4'" in message_of(damaged)
    raw["quantization_config"]["moe_quant_algo"] = "NVFP4"
    path.write_text(json.dumps(raw))
    assert "moe_quant_algo 'NVFP4' is not supported" in message_of(damaged)
    path.unlink()
    assert "config.json: no such file" in message_of(damaged)


def test_config_of_a_larger_model_of_the_family(damaged: Path) -> None:
    path = damaged / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 512}))
    assert "tensor embed.weight is BF16 [512, 256], expected BF16 [512, 512]" in message_of(damaged)


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in message_of(tmp_path / "absent")


def test_resolve_folder(checkpoint_folder: Path) -> None:
    assert resolve_model(checkpoint_folder) == checkpoint_folder
    assert resolve_model(str(checkpoint_folder)) == checkpoint_folder


def test_resolve_refuses_files_and_nonsense(checkpoint_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="a file, expected the folder"):
        resolve_model(checkpoint_folder / "config.json")
    for nonsense in ("no-such-folder", "a/b/c", "../x/y", "", " "):
        with pytest.raises(CheckpointError, match="no such folder"):
            resolve_model(nonsense)


def test_resolve_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, list[str]]] = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        calls.append((hub_id, allow_patterns))
        if hub_id == "owner/offline":
            raise FileNotFoundError("no cached snapshot\nsecond line")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model("owner/name-1.0") == tmp_path
    # weights and JSON only: no code and no pickle is ever fetched
    assert calls == [("owner/name-1.0", ["*.safetensors", "*.json"])]
    with pytest.raises(
        CheckpointError, match=r"owner/offline: no such folder.*FileNotFoundError: no cached snapshot\)"
    ):
        resolve_model("owner/offline")


def test_resolve_none_is_the_embedded_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locate.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(CheckpointError, match="embedded checkpoint is missing"):
        resolve_model(None)
    (tmp_path / "wellhead" / "data" / "tiny").mkdir(parents=True)
    assert resolve_model(None) == tmp_path / "wellhead" / "data" / "tiny"
