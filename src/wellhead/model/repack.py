"""Which part of which stored tensor goes where in the tree of `device_weights`; `unpack` is the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from wellhead.formats.block_fp8 import BLOCK
from wellhead.formats.mxfp4 import BLOCK as FP4_BLOCK
from wellhead.model.config import ModelConfig
from wellhead.model.device_layout import Part
from wellhead.model.device_weights import (
    AttentionWeights,
    CompressorWeights,
    Fp8Weight,
    HeadWeights,
    HyperWeights,
    LayerWeights,
    MoeWeights,
    MtpWeights,
)
from wellhead.model.split import Split


@dataclass(frozen=True)
class Placement:
    """Rows (and columns, if not None) of the tensor called `name` officially, in stored elements, go to `target`.

    `target` is a view of the tree with the shape of that part. Codes and UE8M0 bytes are moved as bytes; the table of
    experts narrows from I64 to i32; fp32 scales become UE8M0 bytes where the target holds bytes.
    """

    name: str
    target: torch.Tensor
    rows: slice
    columns: slice | None = None


@dataclass(frozen=True)
class Repack:
    """The placements of one rank's parts."""

    config: ModelConfig
    split: Split

    def placements(self, path: str, part: Part) -> Iterator[Placement]:
        """Of the part at `path` of the tree, as `DeviceLayout.parts` names them."""
        if isinstance(part, torch.Tensor):
            yield self._vocabulary("embed.weight", part)
        elif isinstance(part, HeadWeights):
            yield self._vocabulary("head.weight", part.vocabulary)
            yield from _hyper("hc_head", "norm.weight", part.hyper)
        elif isinstance(part, MtpWeights):
            yield from self._mtp(f"{path}.", part)
        else:
            yield from self._layer(f"{path}.", part)

    def _vocabulary(self, name: str, target: torch.Tensor) -> Placement:
        return Placement(name, target, self.split.part(self.config.vocab_size))

    def _mtp(self, prefix: str, part: MtpWeights) -> Iterator[Placement]:
        yield from _fp8(f"{prefix}e_proj", part.e_proj)
        yield from _fp8(f"{prefix}h_proj", part.h_proj)
        yield _whole(f"{prefix}enorm.weight", part.enorm)
        yield _whole(f"{prefix}hnorm.weight", part.hnorm)
        yield from self._layer(prefix, part.layer)
        yield from _hyper(f"{prefix}hc_head", f"{prefix}norm.weight", part.head_hyper)

    def _layer(self, prefix: str, layer: LayerWeights) -> Iterator[Placement]:
        yield from _hyper(f"{prefix}hc_attn", f"{prefix}attn_norm.weight", layer.attn_hyper)
        yield from self._attention(f"{prefix}attn.", layer.attention)
        yield from _hyper(f"{prefix}hc_ffn", f"{prefix}ffn_norm.weight", layer.ffn_hyper)
        yield from self._moe(f"{prefix}ffn.", layer.moe)

    def _attention(self, prefix: str, attention: AttentionWeights) -> Iterator[Placement]:
        config, split = self.config, self.split
        latent = attention.wq_a_kv
        yield from _fp8(f"{prefix}wq_a", _rows(latent, 0, config.q_lora_rank))
        yield from _fp8(f"{prefix}wkv", _rows(latent, config.q_lora_rank, config.q_lora_rank + config.head_dim))
        yield _whole(f"{prefix}q_norm.weight", attention.q_norm)
        yield _whole(f"{prefix}kv_norm.weight", attention.kv_norm)
        yield Placement(f"{prefix}attn_sink", attention.sink, split.part(config.num_attention_heads))
        groups = split.part(config.o_groups * config.o_lora_rank)
        heads = split.part(config.num_attention_heads * config.head_dim)
        yield from _fp8(f"{prefix}wq_b", attention.wq_b, rows=heads)
        yield from _fp8(f"{prefix}wo_a", attention.wo_a, rows=groups)
        yield from _fp8(f"{prefix}wo_b", attention.wo_b, columns=groups)
        if attention.compressor is not None:
            yield from _compressor(f"{prefix}compressor.", attention.compressor)
        if attention.indexer is not None:
            indexer = attention.indexer
            yield from _fp8(f"{prefix}indexer.wq_b", indexer.wq_b)
            yield _whole(f"{prefix}indexer.weights_proj.weight", indexer.weights_proj)
            yield from _compressor(f"{prefix}indexer.compressor.", indexer.compressor)

    def _moe(self, prefix: str, moe: MoeWeights) -> Iterator[Placement]:
        yield _whole(f"{prefix}gate.weight", moe.gate)
        if moe.bias is not None:
            yield _whole(f"{prefix}gate.bias", moe.bias)
        if moe.table is not None:
            yield _whole(f"{prefix}gate.tid2eid", moe.table)
        for expert in range(moe.experts.w13.shape[0]):
            yield from self._expert(f"{prefix}experts.{moe.first_expert + expert}.", moe, expert)
        shared = self.split.part(self.config.moe_intermediate_size * self.config.n_shared_experts)
        m = shared.stop - shared.start
        yield from _fp8(f"{prefix}shared_experts.w1", _rows(moe.shared_w13, 0, m), rows=shared)
        yield from _fp8(f"{prefix}shared_experts.w3", _rows(moe.shared_w13, m, 2 * m), rows=shared)
        yield from _fp8(f"{prefix}shared_experts.w2", moe.shared_w2, columns=shared)

    def _expert(self, prefix: str, moe: MoeWeights, expert: int) -> Iterator[Placement]:
        given, fp4 = moe.experts, self.config.expert_dtype == "fp4"
        width = self.split.expert_width(self.config)
        scale_rows = width if fp4 else _divided(width, BLOCK)
        turns = given.w13[expert].unflatten(0, (-1, 2)), given.s13[expert].unflatten(0, (-1, 2))
        for turn, name in enumerate(("w1", "w3")):
            yield Placement(f"{prefix}{name}.weight", turns[0][:, turn], width)
            yield Placement(f"{prefix}{name}.scale", turns[1][:, turn], scale_rows)
        every = slice(0, given.w2.shape[1])
        yield Placement(f"{prefix}w2.weight", given.w2[expert], every, _divided(width, 2) if fp4 else width)
        every = slice(0, given.s2.shape[1])
        scale_columns = _divided(width, FP4_BLOCK if fp4 else BLOCK)
        yield Placement(f"{prefix}w2.scale", given.s2[expert], every, scale_columns)


def _whole(name: str, target: torch.Tensor) -> Placement:
    return Placement(name, target, slice(0, target.shape[0]))


def _fp8(
    name: str, target: Fp8Weight, *, rows: slice | None = None, columns: slice | None = None
) -> Iterator[Placement]:
    """A block-FP8 matrix and its scales, of which whole blocks are taken."""
    rows = rows or slice(0, target.weight.shape[0])
    yield Placement(f"{name}.weight", target.weight, rows, columns)
    blocks = None if columns is None else _divided(columns, BLOCK)
    yield Placement(f"{name}.scale", target.scale, _divided(rows, BLOCK), blocks)


def _rows(stacked: Fp8Weight, low: int, high: int) -> Fp8Weight:
    """One matrix of those stacked; `low` is the start of a block."""
    blocks = _divided(slice(low, high), BLOCK)
    return Fp8Weight(stacked.weight[low:high], stacked.scale[blocks])


def _compressor(prefix: str, compressor: CompressorWeights) -> Iterator[Placement]:
    kv, gate = compressor.kv_gate.chunk(2)
    yield _whole(f"{prefix}ape", compressor.ape)
    yield _whole(f"{prefix}wkv.weight", kv)
    yield _whole(f"{prefix}wgate.weight", gate)
    yield _whole(f"{prefix}norm.weight", compressor.norm)


def _hyper(prefix: str, norm: str, hyper: HyperWeights) -> Iterator[Placement]:
    yield _whole(f"{prefix}_fn", hyper.fn)
    yield _whole(f"{prefix}_base", hyper.base)
    yield _whole(f"{prefix}_scale", hyper.scale)
    yield _whole(norm, hyper.norm)


def _divided(part: slice, unit: int) -> slice:
    """The units that `part` covers; its start is a multiple of `unit`."""
    return slice(part.start // unit, -(-part.stop // unit))
