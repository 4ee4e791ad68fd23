"""Device weights: from files and back, split over ranks, at random, and their shapes as the kernels take them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from wellhead.formats import block_fp8, mxfp4
from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import CheckpointError, open_checkpoint, resolve_model
from wellhead.model.config_file import load_config
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.device_layout import DeviceLayout
from wellhead.model.device_weights import ModelWeights, leaves
from wellhead.model.dummy import dummy_weights, is_divided
from wellhead.model.load import load_model
from wellhead.model.numerics import Numerics
from wellhead.model.parameters import load_parameters
from wellhead.model.published import first_layers, published_config, published_names
from wellhead.model.shard import read_header
from wellhead.model.split import Split
from wellhead.model.stream import load_device_weights
from wellhead.model.unpack import official_tensors
from wellhead.model.weights import iter_tensors
from wellhead.testing.checkpoint_files import write_checkpoint
from wellhead.testing.checkpoints import random_checkpoint, tiny_config_dict

Experts = Literal["width", "expert"]
SMALL_BUFFER = 1 << 18  # a large tensor comes in pieces


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def merged(name: str, ranks: list[dict[str, torch.Tensor]], whole: torch.Size) -> torch.Tensor:
    """What the ranks hold of a tensor, put together along the one dimension in which they are smaller than it."""
    parts = [rank[name] for rank in ranks if name in rank]
    parts = [part.view(torch.uint8) if part.element_size() == 1 else part for part in parts]
    if parts[0].shape == whole:
        assert all(torch.equal(part, parts[0]) for part in parts), name
        return parts[0]
    (dim,) = [d for d in range(len(whole)) if parts[0].shape[d] != whole[d]]
    return torch.cat(parts, dim)


def test_tiny_comes_back_as_the_model_reads_it() -> None:
    checkpoint = open_checkpoint(resolve_model())
    weights, report = load_device_weights(checkpoint, Split(), "cpu", with_mtp=True, buffer_bytes=SMALL_BUFFER)
    found = dict(official_tensors(weights))
    expected = dict(iter_tensors(checkpoint))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(as_bytes(found[name]), as_bytes(tensor)), name
    assert report.read_bytes == checkpoint.nbytes and report.weight_bytes == weights.nbytes
    # and so the parameters of the reference model
    ours = load_parameters(found.items(), checkpoint.config, with_mtp=True)
    theirs = load_parameters(expected.items(), checkpoint.config, with_mtp=True)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_leaf_is_contiguous_or_rows_of_the_joined_product() -> None:
    weights, _ = load_device_weights(open_checkpoint(resolve_model()), Split(), "cpu")
    assert all(tensor.is_contiguous() for _, tensor in leaves(weights))
    assert not weights.mtp
    attention = weights.layers[1].attention
    assert attention.side is not None and attention.compressor is not None and attention.indexer is not None
    rows = (attention.compressor.kv_gate, attention.indexer.compressor.kv_gate, attention.indexer.weights_proj)
    assert torch.equal(attention.side, torch.cat(rows))
    assert attention.side.data_ptr() == attention.compressor.kv_gate.data_ptr()


@pytest.mark.parametrize("experts", ["width", "expert"])
def test_two_ranks_together_are_the_model(experts: Experts) -> None:
    checkpoint = open_checkpoint(resolve_model())
    loaded = [load_device_weights(checkpoint, Split(r, 2, experts), "cpu", with_mtp=True) for r in (0, 1)]
    ranks = [dict(official_tensors(weights)) for weights, _ in loaded]
    seen = set()
    for name, tensor in iter_tensors(checkpoint):
        expected = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
        assert torch.equal(merged(name, ranks, tensor.shape), expected), name
        seen.add(name)
    assert seen == set(ranks[0]) | set(ranks[1])
    for weights, report in loaded:
        assert weights.nbytes < 0.7 * checkpoint.nbytes
        assert report.read_bytes < 0.8 * checkpoint.nbytes
    assert [weights.first_token for weights, _ in loaded] == [0, checkpoint.config.vocab_size // 2]
    assert [weights.layers[0].moe.first_expert for weights, _ in loaded] == ([0, 4] if experts == "expert" else [0, 0])
    # a rank's share of heads and of the width
    attention = loaded[1][0].layers[1].attention
    assert attention.sink.shape == (2,) and attention.wq_b.weight.shape == (2 * 512, 256)
    assert attention.wo_a.weight.shape == (128, 1024) and attention.wo_b.weight.shape == (256, 128)


def fp8_checkpoint(folder: Path, **changes: torch.Tensor) -> Path:
    """A small checkpoint with FP8 experts and fp32 scales; `changes` are added to tensors by name."""
    raw = tiny_config_dict(num_hidden_layers=1, compress_ratios=[4, 0], num_hash_layers=1, n_routed_experts=2)
    raw["expert_dtype"] = "fp8"
    tensors = [(n, t + changes[n] if n in changes else t) for n, t in random_checkpoint(load_config(raw))]
    write_checkpoint(folder, raw, tensors)
    return folder


def test_fp8_experts_keep_their_scales_and_dense_scales_become_bytes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(fp8_checkpoint(tmp_path / "fp8"))
    weights, _ = load_device_weights(checkpoint, Split(1, 2), "cpu")
    experts = weights.layers[0].moe.experts
    assert experts.w13.dtype == torch.float8_e4m3fn and experts.w13.shape == (2, 256, 256)
    assert experts.s13.dtype == torch.float32 and experts.s13.shape == (2, 2, 2)
    stored = dict(iter_tensors(checkpoint))
    name = "layers.0.ffn.experts.1."
    found = dict(official_tensors(weights))
    assert torch.equal(as_bytes(found[f"{name}w3.weight"]), as_bytes(stored[f"{name}w3.weight"][128:]))
    assert torch.equal(found[f"{name}w3.scale"], stored[f"{name}w3.scale"][1:])
    assert torch.equal(as_bytes(found[f"{name}w2.weight"]), as_bytes(stored[f"{name}w2.weight"][:, 128:]))
    assert torch.equal(found[f"{name}w2.scale"], stored[f"{name}w2.scale"][:, 1:])
    dense = found["layers.0.attn.wq_a.scale"]
    assert dense.dtype == torch.uint8
    assert torch.equal(torch.exp2(dense.float() - 127), stored["layers.0.attn.wq_a.scale"])


def test_scales_that_are_no_powers_of_two_are_named(tmp_path: Path) -> None:
    name = "layers.0.attn.wkv.scale"
    checkpoint = open_checkpoint(fp8_checkpoint(tmp_path / "fp8", **{name: torch.tensor(1e-3)}))
    with pytest.raises(CheckpointError, match=f"1 tensors hold scales that are no powers of two, such as {name}"):
        load_device_weights(checkpoint, Split(), "cpu")


def test_a_table_that_names_no_expert_is_named(tmp_path: Path) -> None:
    change = {"layers.0.ffn.gate.tid2eid": torch.tensor(1)}
    checkpoint = open_checkpoint(fp8_checkpoint(tmp_path / "fp8", **change))
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn\.gate\.tid2eid names experts 1 to 2, expected 0 to 1"):
        load_device_weights(checkpoint, Split(), "cpu")
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn\.gate\.tid2eid names experts 1 to 2, expected 0 to 1"):
        load_model(checkpoint, Numerics.named("checkpoint"))


def test_a_split_that_cannot_be_is_refused_before_memory_is_taken() -> None:
    config = load_config(published_config("v4-flash"))
    with pytest.raises(ValueError, match="cannot be split over 16 ranks: o_groups 8 is no multiple of 16"):
        dummy_weights(config, Split(0, 16), "cpu")
    # 192 of the width a rank would cut a block of scales
    with pytest.raises(ValueError, match="moe_intermediate_size 3072 is no multiple of 2048"):
        Split(0, 16).check(load_config(published_config("v4-pro")))
    with pytest.raises(ValueError, match="vocab_size 129280 is no multiple of 3"):
        Split(0, 3).check(config)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Split(2, 2)


@pytest.mark.parametrize(("name", "world"), [("v4-flash", 1), ("v4-flash", 4), ("v4-flash", 8), ("v4-pro", 8)])
def test_published_shapes(name: str, world: int) -> None:
    """The arguments that `ops` expect, at full size, without memory."""
    raw = published_config(name)
    config = load_config(raw)
    weights = DeviceLayout.of(config, Split(0, world), "meta").allocate(with_mtp=True)
    assert len(weights.layers) == raw["num_hidden_layers"] and len(weights.mtp) == 1
    d, q, m, e = (raw[k] for k in ("hidden_size", "q_lora_rank", "moe_intermediate_size", "n_routed_experts"))
    heads, groups, m = raw["num_attention_heads"] // world, raw["o_groups"] // world, m // world
    layer = weights.layers[2]
    attention, moe = layer.attention, layer.moe
    shapes = {
        "wq_a_kv": (attention.wq_a_kv.weight, (q + 512, d)),
        "wq_a_kv.scale": (attention.wq_a_kv.scale, ((q + 512) // 128, d // 128)),
        "wq_b": (attention.wq_b.weight, (heads * 512, q)), "wo_a": (attention.wo_a.weight, (groups * 1024, 4096)),
        "wo_b": (attention.wo_b.weight, (d, groups * 1024)), "sink": (attention.sink, (heads,)),
        "w13": (moe.experts.w13, (e, 2 * m, d // 2)), "s13": (moe.experts.s13, (e, 2 * m, d // 32)),
        "w2": (moe.experts.w2, (e, d, m // 2)), "s2": (moe.experts.s2, (e, d, m // 32)),
        "shared_w13": (moe.shared_w13.weight, (2 * m, d)), "shared_w2": (moe.shared_w2.weight, (d, m)),
        "gate": (moe.gate, (e, d)), "fn": (layer.attn_hyper.fn, (24, 4 * d)), "side": (attention.side, (2624, d)),
        "head": (weights.head.vocabulary, (129280 // world, d)),
    }  # fmt: skip
    for what, (tensor, shape) in shapes.items():
        assert tensor is not None and tuple(tensor.shape) == shape, what
    assert attention.compressor is not None and attention.compressor.kv_gate.shape == (2048, d)
    assert moe.table is not None and moe.table.shape == (129280, 6) and moe.bias is None
    assert weights.layers[3].moe.table is None and weights.layers[3].attention.indexer is None


def test_a_single_rank_holds_the_bytes_of_the_files() -> None:
    config = load_config(published_config("v4-flash"))
    weights = DeviceLayout.of(config, Split(), "meta").allocate(with_mtp=True)
    tables = 3 * 129280 * 6 * 4  # ids take half of what they take on disk
    assert weights.nbytes == 159_609_485_896 - tables


def small_dummy(split: Split, seed: int = 0) -> ModelWeights:
    config = load_config(json.loads((resolve_model() / "config.json").read_text()))
    return dummy_weights(config, split, "cpu", with_mtp=True, seed=seed)


def test_dummy_weights_make_a_sane_model() -> None:
    weights = small_dummy(Split())
    config = load_config(resolve_model())
    model = DeepseekV4(
        load_parameters(official_tensors(weights), config, with_mtp=True), config, Numerics.named("checkpoint")
    )
    tokens = torch.randint(0, config.vocab_size, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    streams = model.forward(Batch.build([Chunk(tokens, 0, [0, 1], 0, "last")]), model.allocate(2, 1))
    assert streams.isfinite().all() and 0.3 < streams.float().std() < 10
    assert 0.5 < model.logits(streams[-8:]).std() < 2
    layer = weights.layers[1]
    for weight, inputs in (
        (block_fp8.dequantize_weight(layer.attention.wq_b.weight, layer.attention.wq_b.scale), 256),
        (mxfp4.dequantize(layer.moe.experts.w13, layer.moe.experts.s13), 256),
        (mxfp4.dequantize(layer.moe.experts.w2, layer.moe.experts.s2), 256),
    ):
        assert 0.6 < weight.std() * inputs**0.5 < 1.6
    table = weights.layers[0].moe.table
    assert table is not None and (table[:, 0] != table[:, 1]).all() and table.unique().tolist() == list(range(8))


def test_dummy_weights_follow_the_seed_and_agree_between_ranks() -> None:
    one, again, other = (dict(leaves(small_dummy(Split(), seed))) for seed in (0, 0, 1))
    assert all(torch.equal(as_bytes(one[path]), as_bytes(again[path])) for path in one)
    assert not torch.equal(one["layers.0.moe.experts.w13"], other["layers.0.moe.experts.w13"])
    ranks = [dict(leaves(small_dummy(Split(r, 2)))) for r in (0, 1)]
    for path in one:
        divided = ranks[0][path].shape != one[path].shape
        assert is_divided(path, Split(0, 2)) == divided, path
        equal = torch.equal(as_bytes(ranks[0][path]), as_bytes(ranks[1][path]))
        # the scales of a few blocks may fall alike
        assert equal != divided or (divided and one[path].numel() < 64), path


def test_dummy_weights_at_full_width() -> None:
    """A V4-Flash layer of every kind but few experts: widths are those of the benchmark."""
    raw = first_layers(published_config("v4-flash"), 4) | {"n_routed_experts": 8, "vocab_size": 1024}
    config = dataclasses.replace(load_config(raw), num_hash_layers=1)
    weights = dummy_weights(config, Split(0, 8), "cpu")
    assert [layer.ratio for layer in weights.layers] == [0, 0, 4, 128]
    expected = DeviceLayout.of(config, Split(0, 8), "meta").allocate(False)
    assert weights.nbytes == expected.nbytes
    scale = weights.layers[2].attention.wo_b.scale
    assert scale.shape == (32, 8) and scale.unique().numel() == 3


def test_shorter_models_keep_the_kinds_of_their_layers() -> None:
    assert published_names() == ["v4-flash", "v4-pro"]
    shorter = load_config(first_layers(published_config("v4-pro"), 2))
    assert shorter.compress_ratios == (128, 128, 0) and shorter.num_hash_layers == 2
    with pytest.raises(ValueError, match="62 layers of 61"):
        first_layers(published_config("v4-pro"), 62)
    with pytest.raises(ValueError, match="'v5' is not shipped, expected one of v4-flash, v4-pro"):
        published_config("v5")


def test_header_of_the_shipped_file_is_where_reads_begin(checkpoint_folder: Path) -> None:
    """Offsets count from behind the header, whatever its length."""
    checkpoint = open_checkpoint(checkpoint_folder)
    file = min(checkpoint_folder.glob("*.safetensors"))
    first: Any = min(read_header(file).values(), key=lambda stored: stored.begin)
    assert first.begin == 8 + int.from_bytes(file.read_bytes()[:8], "little")
    weights, _ = load_device_weights(checkpoint, Split(), "cpu", threads=1, buffer_bytes=SMALL_BUFFER)
    assert torch.equal(dict(official_tensors(weights))[first.name], dict(iter_tensors(checkpoint))[first.name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_on_a_card_the_same_bytes_and_one_buffer_more(checkpoint_folder: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_folder)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    weights, _ = load_device_weights(checkpoint, Split(), "cuda", with_mtp=True, buffer_bytes=SMALL_BUFFER)
    peak = torch.cuda.max_memory_allocated() - before
    # the allocator rounds each tensor to 512 bytes; the largest tensor is copied through a temporary at most
    largest = max(tensor.nbytes for _, tensor in leaves(weights))
    assert peak < weights.nbytes + SMALL_BUFFER + largest + 1024 * len(list(leaves(weights)))
    expected, _ = load_device_weights(checkpoint, Split(), "cpu", with_mtp=True)
    for (path, found), (_, tensor) in zip(leaves(weights), leaves(expected), strict=True):
        assert found.is_cuda and torch.equal(as_bytes(found.cpu()), as_bytes(tensor)), path


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_on_a_card_dummy_weights_are_drawn_there() -> None:
    config = load_config(resolve_model())
    weights = dummy_weights(config, Split(), "cuda", with_mtp=True)
    tensors = ((name, tensor.cpu()) for name, tensor in official_tensors(weights))
    model = DeepseekV4(load_parameters(tensors, config, with_mtp=False), config, Numerics.named("checkpoint"))
    streams = model.forward(Batch.build([Chunk(list(range(200)), 0, [0], 0, "last")]), model.allocate(1, 1))
    assert all(tensor.is_cuda for _, tensor in leaves(weights))
    assert streams.isfinite().all() and 0.3 < streams.float().std() < 10
