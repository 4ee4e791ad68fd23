"""Our ops inside SGLang's own code, against SGLang's own torch paths: on a CPU (interpreted kernels) or on a card.

    TRITON_INTERPRET=1 python -m pytest -p no:xdist tests/integrations/sglang_comparisons.py     # on a CPU
    PYTHONPATH=FOLDER python -m pytest -p no:xdist tests/integrations/sglang_comparisons.py      # on a card

FOLDER is what tools/sglang_sources.py made, or nothing where SGLang is installed (`make test-sglang`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from integrations import sglang_import
from integrations import sglang_objects as objects
from wellhead.dispatch.spec import ErrorBudget
from wellhead.formats import block_fp8, index_key, kv_record, mxfp4
from wellhead.integrations import plans, sglang, targets
from wellhead.ops import registry
from wellhead.testing.agreement import compare

sglang_import.load()


DEVICE = objects.DEVICE
KERNELS = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
OPS = ("sparse_mla", "indexer", "topk", "moe", "hyper_connection", "linear", "norm_quant", "routing")


@pytest.fixture(params=["reference", pytest.param("auto", marks=pytest.mark.skipif(not KERNELS, reason="no kernels"))])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """Our references, then our kernels."""
    plans.force(**dict.fromkeys(OPS, request.param))
    yield request.param
    plans.force(**dict.fromkeys(OPS, "auto"))


@contextmanager
def stock(path: str, **globals_of_module: Any) -> Iterator[None]:
    """SGLang's own function in place of ours, and its module's variables set so."""
    target = next(each for each in sglang.TARGETS if each.path == path)
    owner_path, _, name = target.name.rpartition(".")
    module = __import__(target.module, fromlist=["_"])
    owner = targets.resolve(target.module, owner_path) if owner_path else module
    ours = inspect.getattr_static(owner, name)
    before = {key: getattr(module, key) for key in globals_of_module}
    setattr(owner, name, ours.__wrapped__)
    for key, value in globals_of_module.items():
        setattr(module, key, value)
    try:
        yield
    finally:
        setattr(owner, name, ours)
        for key, value in before.items():
            setattr(module, key, value)


def agrees(found: torch.Tensor, expected: torch.Tensor, budget: ErrorBudget) -> None:
    said = compare((found.cpu(),), (expected.cpu(),), budget)
    assert said, f"{said.outside} of {said.total} outside {budget}: largest {said.largest}, in norm {said.error}"


def test_the_plugin_was_placed_by_sglangs_loader(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + sglang_import.story())
    from sglang.srt.plugins.hook_registry import HookRegistry

    assert {target.path for target in sglang.TARGETS} <= HookRegistry._patched
    assert not sglang_import.stubbed & {"sglang"}


def test_a_record_of_ours_has_the_bytes_of_sglangs() -> None:
    """The page of 256 of the window's pool and the pages of 64 and 2 of the compressed ones, SGLang's own stores."""
    if not KERNELS:
        pytest.skip("SGLang's stores are Triton kernels")
    attention = objects.Attention((9,))
    from sglang.test.kernels.deepseek_v4.k_cache_reference import quant_to_nope_fp8_rope_bf16_pack_triton

    for pool, size in (
        (attention.pool.swa_kv_pool, 256), (attention.pool.layer_mapping[1][2], 64),
        (attention.pool.layer_mapping[2][2], 2),
    ):  # fmt: skip
        buffer = pool.kv_buffer[0]
        assert pool.page_size == size and buffer.shape[1] == kv_record.page_stride(size)
        kv = torch.randn(4, kv_record.DIM, device=DEVICE).bfloat16()
        slots = torch.tensor([0, size - 1, size, 3 * size - 1], device=DEVICE)
        pool.set_key_buffer(0, slots, quant_to_nope_fp8_rope_bf16_pack_triton(kv))
        ours = torch.zeros_like(buffer)
        kv_record.write(ours, slots, kv)
        assert torch.equal(ours, buffer.view(torch.uint8))


def test_an_index_key_of_ours_has_the_bytes_of_sglangs() -> None:
    if not KERNELS:
        pytest.skip("SGLang's store is a Triton kernel")
    attention = objects.Attention((9,))
    pool = attention.pool.index_pools[4]
    codes, scale = index_key.quantize_fp8(torch.randn(3, 128, device=DEVICE))
    slots = torch.tensor([0, 63, 64], device=DEVICE)
    pool.set_index_k_scale_buffer(0, slots, codes, scale.unsqueeze(-1))
    buffer = pool.index_k_with_scale_buffer[0]
    ours = index_key.allocate_pages(index_key.FP8, len(buffer), device=DEVICE)
    index_key.FP8.scatter(ours, slots, codes.view(torch.uint8), scale.unsqueeze(-1).view(torch.uint8))
    assert torch.equal(ours, buffer)


BATCHES = {"decode": ((300, 64, 3), ()), "prefill": ((300,), (70,)), "short prefill": ((0, 250), (5, 9))}
MLA = "sglang.kernels.ops.attention.flash_mla_sm120.flash_mla_with_kvcache_sm120"


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("heads", [8, 64])
def test_sparse_mla_equals_sglangs_torch_path(impl: str, batch: str, heads: int) -> None:
    """`DeepseekV4AttnBackend.forward` of every kind of layer, once with ours, once with `_sm120_sparse_decode_fwd`."""
    if heads == 64 and (batch != "decode" and DEVICE == "cpu"):
        pytest.skip("minutes under the interpreter")
    attention = objects.Attention(*BATCHES[batch], heads=heads)
    attention.fill()
    q = torch.randn(attention.tokens, heads, kv_record.DIM, device=DEVICE).bfloat16()
    for layer in range(3):
        attention.choose_some()
        found = attention.forward(layer, q)
        with stock(MLA, _sm120_default_backend="torch"):
            expected = attention.forward(layer, q)
        assert found.dtype == torch.bfloat16 and not torch.equal(found, torch.zeros_like(found))
        agrees(found, expected, registry.spec("sparse_mla").error)


def test_queries_are_not_padded() -> None:
    from types import SimpleNamespace

    from sglang.srt.models.deepseek_v4 import MqaAttentionBase

    layer = SimpleNamespace(attn_tp_size=8, n_local_heads=8, n_heads=64)
    assert MqaAttentionBase._kernel_num_heads(layer, 1) == 8
    with stock("sglang.srt.models.deepseek_v4.MqaAttentionBase._kernel_num_heads"):
        assert MqaAttentionBase._kernel_num_heads(layer, 1) == 64


LOGITS = "sglang.srt.layers.attention.dsv4.indexer.fp8_paged_mqa_logits_torch_sm120"


@pytest.mark.parametrize("batch", BATCHES)
def test_the_indexer_equals_sglangs_torch_path(impl: str, batch: str) -> None:
    """`forward_c4_indexer` with ours: logits against `fp8_paged_mqa_logits_torch_sm120`, the choice against its top-k.

    SGLang's path rounds each score to bf16 before relu and sum: 2^-8 of the sum of their sizes.
    """
    from sglang.srt.layers.attention.dsv4 import indexer

    attention = objects.Attention(*BATCHES[batch])
    attention.fill()
    codes, weights = attention.index_query()
    seen: dict[str, torch.Tensor] = {}
    ours = indexer.topk_transform_paged

    def watched(scores: torch.Tensor, *rest: Any) -> None:
        seen["scores"] = scores.clone()
        ours(scores, *rest)

    indexer.topk_transform_paged = watched
    try:
        attention.run_indexer(codes, weights)
    finally:
        indexer.topk_transform_paged = ours
    meta = attention.backend.forward_metadata
    lengths, table = meta.indexer_metadata.compressed_seq_lens, meta.indexer_metadata.page_table
    cache = attention.pool.get_index_k_with_scale_buffer(1).view(-1, 64, 1, 132)
    given = (codes.unsqueeze(1), cache, weights, lengths, table, None, seen["scores"].shape[1], False)
    with stock(LOGITS):
        expected = indexer.fp8_paged_mqa_logits_torch_sm120(*given)
    sizes = _exact_logits(cache, codes, weights.abs(), table, seen["scores"].shape[1])
    exact = _exact_logits(cache, codes, weights, table, seen["scores"].shape[1])
    inside = torch.arange(exact.shape[1], device=DEVICE) < lengths.view(-1, 1)
    agrees(seen["scores"][inside], exact[inside].float(), registry.spec("indexer").error)
    assert bool(((expected - seen["scores"]).abs() <= 2.0**-8 * sizes + 2.0**-10)[inside].all())

    chosen = meta.core_metadata.c4_sparse_page_indices
    theirs = torch.empty_like(chosen)
    indexer.topk_transform_pytorch_vectorized(seen["scores"], lengths, table, theirs, 64)
    assert torch.equal(chosen.sort(1).values, theirs.sort(1).values)


def _exact_logits(
    cache: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor, table: torch.Tensor, columns: int
) -> torch.Tensor:
    slots = (table.long().unsqueeze(-1) * 64 + torch.arange(64, device=DEVICE)).flatten(1)[:, :columns]
    keys = index_key.read_fp8(cache.flatten(1), slots).double()
    scores = torch.einsum("thd,tcd->thc", codes.double(), keys).relu()
    return torch.nn.functional.pad((scores * weights.double().unsqueeze(-1)).sum(1), (0, columns - slots.shape[1]))


def test_top_k_of_many_is_sglangs(impl: str) -> None:
    from sglang.srt.layers.attention.dsv4 import indexer

    rows, columns, k = 3, 768, 512
    scores = torch.randn(rows, columns, device=DEVICE)
    lengths = torch.tensor([768, 640, 37], dtype=torch.int32, device=DEVICE)
    table = torch.randperm(rows * columns // 64, device=DEVICE).int().view(rows, -1)
    found, entries = (torch.empty(rows, k, dtype=torch.int32, device=DEVICE) for _ in range(2))
    expected, places = torch.empty_like(found), torch.empty_like(found)
    indexer.topk_transform_paged(scores, lengths, table, found, 64, entries)
    indexer.topk_transform_pytorch_vectorized(scores, lengths, table, expected, 64, places)
    for ours, theirs in ((found, expected), (entries, places)):
        assert torch.equal(ours.sort(1).values, theirs.sort(1).values)


@pytest.mark.parametrize("tokens", [3, 70])
def test_experts_equal_sglangs_dequantised_ones(impl: str, tokens: int) -> None:
    """SGLang's `FusedMoE` with its loader, our method and runner core; against `moe_forward_native` over weights that
    SGLang's `MXFP4QuantizeUtil` unpacks. Rows hold E4M3 values, so the rounding in front of w2 is what differs.
    """
    from sglang.srt.layers.moe.fused_moe_native import moe_forward_native
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    e, d, m, top_k = 6, 256, 256, 2
    layer = objects.experts_layer(e, d, m, top_k, limit=10.0)
    w = {name: torch.randn(e, *shape, device=DEVICE) * shape[1] ** -0.5
         for name, shape in (("w1", (m, d)), ("w2", (d, m)), ("w3", (m, d)))}  # fmt: skip
    packed = {name: mxfp4.quantize(value) for name, value in w.items()}
    for expert in range(e):
        for shard, (codes, scale) in packed.items():
            which = "w2" if shard == "w2" else "w13"
            layer.weight_loader(
                getattr(layer, f"{which}_weight"), codes[expert].view(torch.int8), f"{which}_weight", shard, expert
            )
            layer.weight_loader(
                getattr(layer, f"{which}_weight_scale_inv"), scale[expert].view(torch.float8_e8m0fnu),
                f"{which}_weight_scale_inv", shard, expert,
            )  # fmt: skip
    layer.quant_method.process_weights_after_loading(layer)

    x = block_fp8.round_rows(torch.randn(tokens, d, device=DEVICE).bfloat16(), 128)
    ids = torch.stack([torch.randperm(e, device=DEVICE)[:top_k] for _ in range(tokens)]).int()
    ids[0, 1] = -1  # another rank's
    weights = torch.rand(tokens, top_k, device=DEVICE)
    routed = StandardTopKOutput(weights, ids, x.new_zeros(tokens, e))
    found = objects.run_experts(layer, x, routed)

    plain = objects.plain_experts(e, *(_unpacked(*packed[name]) for name in ("w1", "w3", "w2")))
    kept = torch.where(ids < 0, 0.0, weights)
    named = torch.where(ids < 0, (ids[:, :1] + 1) % e, ids)  # no expert twice, which SGLang's loop cannot take
    expected = moe_forward_native(
        plain, x.float(), StandardTopKOutput(kept, named.long(), None), plain.moe_runner_config
    )
    apart = (found.float() - expected).norm() / expected.norm()
    assert apart < 2.0**-5, f"{apart} in norm: E4M3 keeps 2^-4 of each hidden value"
    from wellhead.ops.linear.reference import round_input
    from wellhead.ops.moe import reference

    dense = [_unpacked(*packed[name]) for name in ("w1", "w3", "w2")]
    own = reference.routed(x, ids.long(), weights, *dense, 10.0, round_input)
    agrees(found, own.bfloat16(), registry.spec("moe").error)


def _unpacked(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    from sglang.srt.layers.quantization.fp8_utils import dequant_mxfp4

    return dequant_mxfp4(codes.unflatten(-1, (-1, 16)), scale, torch.float32)


HC = "sglang.srt.models.deepseek_v4.DeepseekV4DecoderLayerBase"


@pytest.mark.parametrize("tokens", [0, 5])
def test_hyper_connections_equal_sglangs_torch_path(impl: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hc_pre`, `hc_post` and the fused boundary, against SGLang's torch implementation and its Sinkhorn reference."""
    from sglang.srt.environ import envs
    from sglang.srt.models import deepseek_v4
    from sglang.srt.models.deepseek_common.amd import deepseek_v4_fused_mhc as boundary
    from sglang.test.kernels.mhc import hc_split_sinkhorn_torch

    d = 256
    layer, norm = objects.decoder_layer(d), objects.norm(d)
    streams = torch.randn(tokens, 4, d, device=DEVICE).bfloat16()
    y = torch.randn(tokens, d, device=DEVICE).bfloat16()
    site = (torch.randn(24, 4 * d, device=DEVICE) * d**-0.5 / 2, torch.tensor([1.0, 0.5, 2.0], device=DEVICE),
            torch.randn(24, device=DEVICE))  # fmt: skip
    for name in ("USE_TILELANG_MHC_PRE", "USE_TILELANG_MHC_POST", "DEEPGEMM_HC_PRENORM"):
        monkeypatch.setenv(f"SGLANG_OPT_{name}", "0")
    assert not envs.SGLANG_OPT_USE_TILELANG_MHC_PRE.get()
    theirs = deepseek_v4.MhcOps(hc_split_sinkhorn_torch, None, None, None, None, None)
    monkeypatch.setattr(deepseek_v4, "get_mhc_ops", lambda: theirs)
    from sglang.kernels.ops.layernorm import mhc

    if not KERNELS:
        monkeypatch.setattr(
            mhc, "mhc_combine",
            lambda x, pre, n, dtype: (x.unflatten(1, (n, -1)) * pre.unsqueeze(-1)).sum(1).to(dtype),
        )  # fmt: skip
    budget = registry.spec("hyper_connection").error

    u, post, comb, fused = layer.hc_pre(streams, *site, norm=norm)
    assert fused
    bare, *_, unfused = layer.hc_pre(streams, *site)
    assert not unfused
    mixed = layer.hc_post(y, streams, post, comb)
    with objects.alone(), stock(f"{HC}.hc_pre"), stock(f"{HC}.hc_post"):
        expected, their_post, their_comb, _ = layer.hc_pre(streams, *site)
        their_mixed = layer.hc_post(y, streams, post, comb)
    normed = torch.nn.functional.rms_norm(expected.float(), (d,), norm.weight.float(), 1e-6).bfloat16()
    for found, wanted in ((bare, expected), (u, normed), (post, their_post), (comb, their_comb), (mixed, their_mixed)):
        agrees(found, wanted, budget)

    both = boundary.apply_mhc_post_pre_boundary(
        y, streams, post, comb, *site, 4, 1e-6, 1e-6, 2.0, 20, norm.weight, 1e-6, fn_transpose=False
    )
    after = layer.hc_pre(mixed, *site, norm=norm)
    assert torch.equal(both[0], mixed) and both[4]
    for found, wanted in zip(both[1:4], after[:3], strict=True):
        agrees(found, wanted, budget)


@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_linear_equals_sglangs_dequantised_weights(impl: str, tokens: int) -> None:
    """SGLang's `ReplicatedLinear` with our product, against its `block_quant_dequant` weights and rounded rows."""
    from sglang.srt.layers.quantization.fp8_utils import block_quant_dequant

    n, k = 384, 256
    weight, scale = block_fp8.quantize_weight(torch.randn(n, k, device=DEVICE) * k**-0.5)
    layer = objects.linear_layer(weight, scale)
    x = torch.randn(tokens, k, device=DEVICE).bfloat16()
    bias = torch.randn(n, device=DEVICE).bfloat16()
    wide = block_quant_dequant(layer.weight, layer.weight_scale_inv, [128, 128], torch.float32)
    expected = block_fp8.round_rows(x, 128).float() @ wide.T
    agrees(layer(x)[0], expected.bfloat16(), registry.spec("linear").error)
    both = layer.quant_method.apply(layer, x.unsqueeze(0), bias)
    assert torch.equal(both[0], layer(x)[0] + bias)


def test_weights_that_are_loaded_again_bring_their_scales(impl: str) -> None:
    """As SGLang's weight updater does it: written through `.data`, then processed; graphs keep the bytes' address."""
    weight, scale = block_fp8.quantize_weight(torch.randn(128, 256, device=DEVICE))
    layer = objects.linear_layer(weight, scale)
    x = torch.randn(3, 256, device=DEVICE).bfloat16()
    before, at = layer(x)[0], layer.weight_scale_inv._wellhead_scale.data_ptr()
    with objects.alone():
        layer.weight_scale_inv.data.mul_(2)
        layer.quant_method.process_weights_after_loading(layer)
    assert torch.equal(layer(x)[0], 2 * before)
    assert layer.weight_scale_inv._wellhead_scale.data_ptr() == at


def test_a_scale_that_is_no_power_of_two_is_refused(impl: str) -> None:
    weight, scale = block_fp8.quantize_weight(torch.randn(128, 128, device=DEVICE))
    layer = objects.linear_layer(weight, scale)
    layer.weight_scale_inv.data.mul_(1.5)
    with pytest.raises(ValueError, match="powers of two"):
        layer(torch.zeros(1, 128, device=DEVICE).bfloat16())
