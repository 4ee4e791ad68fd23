from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from oracles.transformers_names import transformers_name
from wellhead.model.config_file import load_config
from wellhead.model.names import official_name
from wellhead.model.tensors import TensorSpec, expected_tensors
from wellhead.testing.checkpoints import tiny_config_dict

Published = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("name, nbytes, count", [("flash", 159_609_485_896, 69_187), ("pro", 864_704_792_696, 145_116)])
def test_published_totals(published: Published, name: str, nbytes: int, count: int) -> None:
    names, total = set(), 0
    for spec in expected_tensors(load_config(published(name))):
        names.add(spec.name)
        total += spec.nbytes
    assert (total, len(names)) == (nbytes, count)


def test_published_shapes_of_flash(published: Published) -> None:
    table = {spec.name: spec for spec in expected_tensors(load_config(published("flash")))}
    for name, shape, dtype in [
        ("embed.weight", (129280, 4096), "BF16"),
        ("layers.0.hc_attn_fn", (24, 16384), "F32"),
        ("layers.0.attn.wo_a.weight", (8192, 4096), "F8_E4M3"),
        ("layers.0.attn.wo_a.scale", (64, 32), "F8_E8M0"),
        ("layers.2.attn.compressor.ape", (4, 1024), "F32"),
        ("layers.3.attn.compressor.wkv.weight", (512, 4096), "BF16"),
        ("layers.2.attn.indexer.compressor.norm.weight", (128,), "BF16"),
        ("layers.2.ffn.gate.tid2eid", (129280, 6), "I64"),
        ("layers.3.ffn.gate.bias", (256,), "F32"),
        ("layers.42.ffn.experts.255.w2.weight", (4096, 1024), "I8"),
        ("layers.42.ffn.experts.255.w2.scale", (4096, 64), "F8_E8M0"),
        ("mtp.0.h_proj.scale", (32, 32), "F8_E8M0"),
        ("mtp.0.hc_head_scale", (1,), "F32"),
    ]:
        assert table[name] == TensorSpec(name, shape, dtype)
    for absent in (
        "layers.2.ffn.gate.bias",
        "layers.3.ffn.gate.tid2eid",
        "layers.1.attn.compressor.ape",
        "layers.3.attn.indexer.wq_b.weight",
        "mtp.0.ffn.gate.tid2eid",
        "mtp.0.embed.weight",
    ):
        assert absent not in table


def test_fp8_experts_are_block_scaled_in_fp32() -> None:
    table = {spec.name: spec for spec in expected_tensors(load_config(tiny_config_dict(expert_dtype="fp8")))}
    weight, scale = table["layers.0.ffn.experts.0.w1.weight"], table["layers.0.ffn.experts.0.w1.scale"]
    assert (weight.dtype, weight.shape) == ("F8_E4M3", (256, 256))
    assert (scale.dtype, scale.shape) == ("F32", (2, 2))
    assert "F8_E8M0" not in {spec.dtype for spec in table.values()}


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_names_are_a_bijection(published: Published, name: str) -> None:
    official = [spec.name for spec in expected_tensors(load_config(published(name)))]
    theirs = [transformers_name(one) for one in official]
    assert len(set(theirs)) == len(official)
    assert [official_name(one) for one in theirs] == official
    assert [official_name(one) for one in official] == official


@pytest.mark.parametrize(
    "name, official",
    [
        ("model.layers.3.self_attn.q_a_proj.weight_scale_inv", "layers.3.attn.wq_a.scale"),
        ("model.layers.3.self_attn.wq_a.weight", "layers.3.attn.wq_a.weight"),
        ("layers.3.mlp.gate.e_score_correction_bias", "layers.3.ffn.gate.bias"),
        ("model.layers.3.mlp.experts.17.up_proj.weight", "layers.3.ffn.experts.17.w3.weight"),
        ("model.layers.3.attn_hc.scale", "layers.3.hc_attn_scale"),
        ("lm_head.weight", "head.weight"),
        ("model.layers.3.mlp.experts.gate_up_proj", None),
        ("layers.x.attn.wq_a.weight", None),
        ("layers.0.attn.wq_a.bias", None),
        ("rotary_emb.inv_freq", None),
        ("", None),
    ],
)
def test_official_name(name: str, official: str | None) -> None:
    assert official_name(name) == official


def test_names_and_shapes_agree_with_transformers() -> None:
    from transformers.models import deepseek_v4 as v4  # here: the import takes seconds

    raw = tiny_config_dict(num_nextn_predict_layers=0, compress_ratios=[0, 4, 128, 4, 0])
    with torch.device("meta"):
        theirs = {
            name: tuple(tensor.shape)
            for name, tensor in v4.DeepseekV4ForCausalLM(v4.DeepseekV4Config(**raw)).state_dict().items()
            if ".mlp.experts." not in name
        }
    ours = {
        transformers_name(spec.name): spec.shape
        for spec in expected_tensors(load_config(raw))
        if ".experts." not in spec.name and not spec.name.endswith(".scale")
    }
    assert ours == theirs
