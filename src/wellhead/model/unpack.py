"""From the tree of `device_weights` back to the tensors of the checkpoint, by their official names.

The inverse of `repack`, written apart from it: rows are found by shape, gate and up rows by `layout.separate`. Of a
split model it gives this rank's part of each tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from wellhead.formats.block_fp8 import BLOCK
from wellhead.model.device_weights import (
    AttentionWeights,
    CompressorWeights,
    Fp8Weight,
    HyperWeights,
    LayerWeights,
    ModelWeights,
    MoeWeights,
    MtpWeights,
)
from wellhead.ops.moe import layout

Named = Iterator[tuple[str, torch.Tensor]]


def official_tensors(weights: ModelWeights) -> Named:
    """(name, tensor) as `weights.iter_tensors` yields them: E4M3, bytes of E2M1 and UE8M0, bf16, fp32, tables int64."""
    yield "embed.weight", weights.embedding
    for number, layer in enumerate(weights.layers):
        yield from _layer(f"layers.{number}.", layer)
    yield "head.weight", weights.head.vocabulary
    yield from _hyper("hc_head", "norm.weight", weights.head.hyper)
    for number, module in enumerate(weights.mtp):
        yield from _mtp(f"mtp.{number}.", module)


def _mtp(prefix: str, module: MtpWeights) -> Named:
    yield from _fp8(f"{prefix}e_proj", module.e_proj)
    yield from _fp8(f"{prefix}h_proj", module.h_proj)
    yield f"{prefix}enorm.weight", module.enorm
    yield f"{prefix}hnorm.weight", module.hnorm
    yield from _layer(prefix, module.layer)
    yield from _hyper(f"{prefix}hc_head", f"{prefix}norm.weight", module.head_hyper)


def _layer(prefix: str, layer: LayerWeights) -> Named:
    yield from _hyper(f"{prefix}hc_attn", f"{prefix}attn_norm.weight", layer.attn_hyper)
    yield from _attention(f"{prefix}attn.", layer.attention)
    yield from _hyper(f"{prefix}hc_ffn", f"{prefix}ffn_norm.weight", layer.ffn_hyper)
    yield from _moe(f"{prefix}ffn.", layer.moe)


def _attention(prefix: str, attention: AttentionWeights) -> Named:
    query_rank, head_dim = attention.q_norm.shape[0], attention.kv_norm.shape[0]
    wq_a, wkv = attention.wq_a_kv.weight.split((query_rank, head_dim))
    blocks = attention.wq_a_kv.scale.split((query_rank // BLOCK, head_dim // BLOCK))
    yield from _fp8(f"{prefix}wq_a", Fp8Weight(wq_a, blocks[0]))
    yield from _fp8(f"{prefix}wkv", Fp8Weight(wkv, blocks[1]))
    yield f"{prefix}q_norm.weight", attention.q_norm
    yield f"{prefix}kv_norm.weight", attention.kv_norm
    yield f"{prefix}attn_sink", attention.sink
    for name, weight in (("wq_b", attention.wq_b), ("wo_a", attention.wo_a), ("wo_b", attention.wo_b)):
        yield from _fp8(f"{prefix}{name}", weight)
    if attention.compressor is not None:
        yield from _compressor(f"{prefix}compressor.", attention.compressor)
    if attention.indexer is not None:
        yield from _fp8(f"{prefix}indexer.wq_b", attention.indexer.wq_b)
        yield f"{prefix}indexer.weights_proj.weight", attention.indexer.weights_proj
        yield from _compressor(f"{prefix}indexer.compressor.", attention.indexer.compressor)


def _moe(prefix: str, moe: MoeWeights) -> Named:
    yield f"{prefix}gate.weight", moe.gate
    if moe.bias is not None:
        yield f"{prefix}gate.bias", moe.bias
    if moe.table is not None:
        yield f"{prefix}gate.tid2eid", moe.table.long()
    given = moe.experts
    for expert in range(given.w13.shape[0]):
        name = f"{prefix}experts.{moe.first_expert + expert}."
        codes = layout.separate(given.w13[expert].view(torch.uint8))
        blocks = layout.separate(given.s13[expert])
        for index, part in enumerate(("w1", "w3")):
            yield f"{name}{part}.weight", codes[index].view(given.w13.dtype)
            yield f"{name}{part}.scale", blocks[index]
        yield f"{name}w2.weight", given.w2[expert]
        yield f"{name}w2.scale", given.s2[expert]
    weights, scales = moe.shared_w13.weight.chunk(2), moe.shared_w13.scale.chunk(2)
    yield from _fp8(f"{prefix}shared_experts.w1", Fp8Weight(weights[0], scales[0]))
    yield from _fp8(f"{prefix}shared_experts.w3", Fp8Weight(weights[1], scales[1]))
    yield from _fp8(f"{prefix}shared_experts.w2", moe.shared_w2)


def _compressor(prefix: str, compressor: CompressorWeights) -> Named:
    kv, gate = compressor.kv_gate.chunk(2)
    yield f"{prefix}ape", compressor.ape
    yield f"{prefix}wkv.weight", kv
    yield f"{prefix}wgate.weight", gate
    yield f"{prefix}norm.weight", compressor.norm


def _hyper(prefix: str, norm: str, hyper: HyperWeights) -> Named:
    yield f"{prefix}_fn", hyper.fn
    yield f"{prefix}_base", hyper.base
    yield f"{prefix}_scale", hyper.scale
    yield norm, hyper.norm


def _fp8(name: str, matrix: Fp8Weight) -> Named:
    yield f"{name}.weight", matrix.weight
    yield f"{name}.scale", matrix.scale
