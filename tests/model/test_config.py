from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wellhead.model.config import ConfigError
from wellhead.model.config_file import load_config
from wellhead.model.step import frequencies
from wellhead.testing.checkpoints import tiny_config_dict

Published = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("name, windows, c4, c128", [("flash", 2, 21, 20), ("pro", 0, 30, 31)])
def test_published_ratios(published: Published, name: str, windows: int, c4: int, c128: int) -> None:
    ratios = load_config(published(name)).compress_ratios[:-1]
    first = 0 if name == "flash" else 128
    assert ratios[:2] == (first, first)
    assert all(ratio == (4 if i % 2 == 0 else 128) for i, ratio in enumerate(ratios) if i >= 2)
    assert [ratios.count(ratio) for ratio in (0, 4, 128)] == [windows, c4, c128]


def test_published_values(published: Published) -> None:
    flash, pro = load_config(published("flash")), load_config(published("pro"))
    assert (flash.hidden_size, flash.num_attention_heads, flash.index_topk) == (4096, 64, 512)
    assert (pro.hidden_size, pro.num_attention_heads, pro.index_topk) == (7168, 128, 1024)
    assert (flash.routed_scaling_factor, pro.routed_scaling_factor) == (1.5, 2.5)
    assert (flash.expert_dtype, flash.scale_dtype) == (
        "fp4",
        "ue8m0",
    )  # the key is absent in the published file
    assert flash.num_nextn_predict_layers == 1 and flash.compress_ratios[43:] == (0,)


def test_rotation_by_ratio(published: Published) -> None:
    """Window layers turn by plain powers of 10000; the others by 160000's, the slow ones 16 times slower."""
    found = frequencies(load_config(published("flash")))
    assert found[0].tolist() == pytest.approx([10000 ** (-i / 32) for i in range(32)], rel=1e-6)
    for ratio in (4, 128):
        picked = [found[ratio][i].item() for i in (1, 15, 16, 20, 31)]
        assert picked == pytest.approx([6.876560e-1, 3.635539e-3, 2.265625e-3, 2.969778e-4, 5.680529e-7], rel=1e-6)


def test_every_number_of_the_published_config_is_read(published: Published) -> None:
    # changing any number changes the record or is refused: no key is dropped unseen
    unused = {"attention_dropout", "initializer_range", "transformers_version", "use_cache"}
    raw = published("pro")
    before = load_config(raw)
    for key, value in raw.items():
        if key in unused:
            continue
        changed: Any = [*value, 7] if isinstance(value, list) else {} if isinstance(value, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            changed = value * 2 + 2
        elif isinstance(value, bool):
            changed = not value
        elif isinstance(value, str):
            changed = value + "x"
        try:
            assert load_config({**raw, key: changed}) != before, key
        except ConfigError as error:
            assert key in str(error)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek_v32", "deepseek_v41", "llama", None])
def test_other_models_are_refused_by_name(published: Published, model_type: str | None) -> None:
    with pytest.raises(ConfigError, match=rf"model_type is {model_type!r}, expected 'deepseek_v4'"):
        load_config({**published("flash"), "model_type": model_type})


def test_reference_config_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"reference code's config"):
        load_config({"dim": 4096, "n_layers": 43})


def test_unknown_architecture_and_vision_are_refused(published: Published) -> None:
    with pytest.raises(ConfigError, match=r"architectures is .*Other"):
        load_config({**published("flash"), "architectures": ["Other"]})
    with pytest.raises(ConfigError, match="vision variant"):
        load_config({**published("flash"), "vision_n_layers": 32})


@pytest.mark.parametrize(
    "quantization, message",
    [
        ({"quant_method": "fp8", "moe_quant_algo": "NVFP4"}, "moe_quant_algo 'NVFP4' is not supported"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_method is 'modelopt', expected 'fp8'"),
        ({"quant_method": "compressed-tensors"}, "'compressed-tensors', expected 'fp8'"),
        ({"weight_block_size": [64, 64]}, r"weight_block_size is \[64, 64\], expected \[128, 128\]"),
        ({"scale_fmt": "float"}, "scale_fmt is 'float', expected 'ue8m0'"),
        ({"fmt": "e5m2"}, "fmt is 'e5m2', expected 'e4m3'"),
    ],
)
def test_unknown_quantization_is_named(quantization: dict[str, Any], message: str) -> None:
    raw = tiny_config_dict()
    raw["quantization_config"] |= quantization
    with pytest.raises(ConfigError, match=message):
        load_config(raw)


@pytest.mark.parametrize(
    "override, message",
    [
        ({"quantization_config": None}, "quantization_config is None, expected"),
        ({"expert_dtype": "bf16"}, "expert_dtype is 'bf16', expected 'fp4' or 'fp8'"),
        ({"compress_ratios": [0, 4, 128]}, "has 3 entries, expected 6: num_hidden_layers 5"),
        ({"compress_ratios": [0, 4, 128, 4, 0, 4]}, r"of MTP layers are \(4,\), expected 0"),
        ({"compress_ratios": [0, 2, 128, 4, 0, 0]}, r"expected a list of \[0, 4, 128\]"),
        ({"head_dim": 192}, "head_dim is 192, expected 512"),
        ({"qk_rope_head_dim": 32}, "qk_rope_head_dim is 32, expected 64"),
        ({"index_head_dim": 64}, "index_head_dim is 64, expected 128"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 exceeds n_routed_experts 8"),
        ({"num_hash_layers": 6}, "num_hash_layers 6 exceeds num_hidden_layers 5"),
        ({"o_groups": 3}, "num_attention_heads 4 is no multiple of o_groups 3"),
        ({"hidden_size": 200}, "hidden_size 200 is no multiple of 128"),
        ({"hidden_size": 256.0}, "hidden_size is 256.0, expected an integer above 0"),
        ({"vocab_size": True}, "vocab_size is True, expected an integer above 0"),
        ({"swiglu_limit": float("nan")}, "swiglu_limit is nan, expected a number above 0"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, expected a number above 0"),
        ({"vocab_size": 10**400}, "vocab_size is an integer of 1329 bits, expected an integer above 0 within"),
        ({"rope_theta": -(10**5000)}, "rope_theta is an integer of 16610 bits, expected a number above 0 within"),
        ({"index_topk": 0}, "index_topk is 0, expected an integer above 0"),
        ({"rope_scaling": None}, "rope_scaling is None, expected type 'yarn'"),
        ({"rope_scaling": {"type": "yarn", "factor": 16}}, "rope_scaling.beta_fast is 'missing'"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid', expected 'sqrtsoftplus'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True, expected False"),
    ],
)
def test_wrong_fields_are_named(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_config_dict(**override))


def test_all_problems_come_in_one_message() -> None:
    raw = tiny_config_dict(o_groups=0, vocab_size="many")
    del raw["sliding_window"], raw["head_dim"]
    with pytest.raises(ConfigError) as caught:
        load_config(raw)
    for part in (
        "o_groups is 0",
        "vocab_size is 'many'",
        "sliding_window is 'missing'",
        "head_dim is 'missing'",
    ):
        assert part in str(caught.value)


def test_fp8_experts_have_fp32_scales() -> None:
    config = load_config(tiny_config_dict(expert_dtype="fp8"))
    assert (config.expert_dtype, config.scale_dtype) == ("fp8", "fp32")


def test_block_drafting_variant_runs_without_its_draft(published: Published) -> None:
    raw = published("flash") | {"dspark_block_size": 5}
    raw["compress_ratios"] = [*raw["compress_ratios"], 0, 0]
    config = load_config(raw)
    assert config.num_nextn_predict_layers == 0
    assert config.compress_ratios[:43] == load_config(published("flash")).compress_ratios[:43]


def test_load_from_folder_file_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        load_config(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"not readable as JSON"):
        load_config(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object, found list"):
        load_config(path)
    path.write_text(json.dumps(tiny_config_dict()))
    assert load_config(tmp_path) == load_config(str(path)) == load_config(tiny_config_dict())
