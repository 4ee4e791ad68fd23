"""What a checkpoint is called, from its configuration and the headers of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes import safetensors_header
from wellhead.model.identify import identify
from wellhead.model.locate import find_config
from wellhead.model.published import published_config
from wellhead.model.shard import CheckpointError

FLASH = published_config("v4-flash")
QUANTIZATION = FLASH["quantization_config"]

W1 = "layers.0.ffn.experts.0.w1"
MXFP4 = {f"{W1}.weight": ("I8", (64, 32)), f"{W1}.scale": ("F8_E8M0", (64, 2))}
NVFP4 = {
    f"model.{W1}.weight": ("U8", (64, 32)), f"model.{W1}.weight_scale": ("F8_E4M3", (64, 4)),
    f"model.{W1}.weight_scale_2": ("F32", ()),
}  # fmt: skip
FP8 = {f"{W1}.weight": ("F8_E4M3", (128, 128)), f"{W1}.scale": ("F32", (1, 1))}


@pytest.mark.parametrize(
    ("raw", "kind", "runs", "title"),
    [
        (FLASH, "v4", True, "V4-Flash (FP4 experts, FP8 rest)"),
        (published_config("v4-pro"), "v4", True, "V4-Pro (FP4 experts, FP8 rest)"),
        (FLASH | {"num_hidden_layers": 7}, "v4", True, "V4 architecture of other sizes (7 layers of 4096)"),
        (FLASH | {"expert_dtype": "fp8"}, "v4-base", True, "V4-Flash-Base (FP8 experts)"),
        (FLASH | {"dspark_block_size": 5}, "v4-dspark", True, "V4-Flash with DSpark drafting"),
        (FLASH | {"vision_n_layers": 32}, "v4-vision", False, "V4-Flash Vision"),
        (
            FLASH | {"quantization_config": QUANTIZATION | {"moe_quant_algo": "NVFP4"}}, "v4-nvfp4", False,
            "V4-Flash, re-quantised to NVFP4",
        ),
        (
            FLASH | {"quantization_config": {"quant_method": "gptq"}}, "v4-requantised", False,
            "V4-Flash, re-quantised",
        ),
        (
            {"model_type": "deepseek_v41", "architectures": ["DeepseekV41ForCausalLM"], "text_config": {}}, "v4.1",
            False, "V4.1",
        ),
        (FLASH | {"architectures": ["DeepseekV41ForCausalLM"]}, "v4.1", False, "V4.1"),
        ({"model_type": "deepseek_v32"}, "v3.2", False, "V3.2"),
        ({"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}, "v3", False, "V3 or R1"),
        ({"n_layers": 43, "dim": 4096}, "reference-config", False, "V4's inference folder"),
        ({"model_type": "llama"}, "other", False, "something else (llama)"),
        ({}, "other", False, "something else (None)"),
    ],
)  # fmt: skip
def test_by_configuration(raw: dict[str, Any], kind: str, runs: bool, title: str) -> None:
    found = identify(raw)
    assert (found.kind, found.runs) == (kind, runs) and found.title.startswith(title)
    assert found.runs or (found.why and found.fix)
    assert found.evidence and found.evidence[0].startswith("model_type ")


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(
    ("raw", "stored", "kind", "believed"),
    [
        (FLASH, MXFP4, "v4", f"{W1}.weight: I8 [64, 32], scale F8_E8M0 [64, 2]"),
        (FLASH, NVFP4, "v4-nvfp4", f"model.{W1}.weight: U8 [64, 32], scale F8_E4M3 [64, 4]"),
        (FLASH, FP8, "v4-mixed", f"{W1}.weight: F8_E4M3 [128, 128], scale F32 [1, 1]"),
        (FLASH | {"expert_dtype": "fp8"}, FP8, "v4-base", f"{W1}.weight: F8_E4M3 [128, 128], scale F32 [1, 1]"),
        (FLASH | {"expert_dtype": "fp8"}, MXFP4, "v4-mixed", f"{W1}.weight: I8 [64, 32], scale F8_E8M0 [64, 2]"),
    ],
)
def test_by_headers(
    tmp_path: Path, raw: dict[str, Any], stored: dict[str, Any], kind: str, believed: str, indexed: bool
) -> None:
    safetensors_header.write(tmp_path / "model.safetensors", stored)
    if indexed:
        index = {"weight_map": dict.fromkeys(stored, "model.safetensors")}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    found = identify(raw, tmp_path)
    assert found.kind == kind and found.evidence[-1] == believed


def test_a_drafting_layer_of_another_format(tmp_path: Path) -> None:
    """Such a checkpoint loads elsewhere, and none of its drafts is accepted."""
    drafting = {name.replace("layers.0", "mtp.0"): value for name, value in FP8.items()}
    safetensors_header.write(tmp_path / "model.safetensors", MXFP4 | drafting)
    found = identify(FLASH, tmp_path)
    assert (found.kind, found.why) == ("v4-mixed", "the drafting layer's experts are fp8, the model's fp4")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"version https://git-lfs.github.com/spec/v1\n"])
def test_files_that_cannot_be_read_are_not_believed(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(damage)
    assert identify(FLASH, tmp_path).kind == "v4"
    (tmp_path / "model.safetensors.index.json").write_bytes(damage)
    assert identify(FLASH, tmp_path).kind == "v4"


def test_names_of_configurations(tmp_path: Path) -> None:
    assert find_config("v4-flash").raw == find_config("deepseek-ai/DeepSeek-V4-Flash").raw == FLASH
    file = tmp_path / "some.json"
    file.write_text(json.dumps(FLASH), encoding="utf-8")
    assert find_config(str(file)).folder is None  # not beside its weights
    tiny = find_config(None)
    assert tiny.name == "tiny" and tiny.folder is not None and identify(tiny.raw, tiny.folder).kind == "v4"
    for name in ("", "no/such/folder", "nothing"):
        with pytest.raises(CheckpointError, match=r"no such folder or config\.json, not v4-flash or v4-pro"):
            find_config(name)
    with pytest.raises(CheckpointError, match="is not asked for online"):
        find_config("some/model", online=False)


def test_of_a_hub_id_the_configuration_alone_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(hub_id: str, file: str) -> str:
        asked.append((hub_id, file))
        (tmp_path / file).write_text(json.dumps(FLASH), encoding="utf-8")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = find_config("somebody/V4-Flash-mine")
    assert found.raw == FLASH and found.folder is None and asked == [("somebody/V4-Flash-mine", "config.json")]

    def refuse(hub_id: str, file: str) -> str:
        raise OSError("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=r"hub does not give it \(OSError: 401 Client Error\); check the name"):
        find_config("somebody/V4-Flash-mine")
