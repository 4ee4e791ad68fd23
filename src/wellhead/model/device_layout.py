"""Allocate the tree of `device_weights`: from a configuration and a split alone, on any device ("meta" costs nothing).

Memory is not initialised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from wellhead.formats import mxfp4
from wellhead.formats.block_fp8 import BLOCK
from wellhead.model.config import ModelConfig
from wellhead.model.device_weights import (
    AttentionWeights,
    CompressorWeights,
    Fp8Weight,
    HeadWeights,
    HyperWeights,
    IndexerWeights,
    LayerWeights,
    ModelWeights,
    MoeWeights,
    MtpWeights,
)
from wellhead.model.split import Split
from wellhead.ops.compressor.reference import overlap
from wellhead.ops.moe.packed import PackedWeights

Part = torch.Tensor | LayerWeights | HeadWeights | MtpWeights


def side_parts(config: ModelConfig, ratio: int) -> tuple[int, ...]:
    """Rows of `AttentionWeights.side`: the compressor's values and gates; with ratio 4 the index compressor's, and the
    index weights.
    """
    own = 2 * overlap(ratio) * config.head_dim
    return (own, 2 * overlap(ratio) * config.index_head_dim, config.index_n_heads) if ratio == 4 else (own,)


@dataclass(frozen=True)
class DeviceLayout:
    """What `split`'s rank holds of `config`'s model, on `device`."""

    config: ModelConfig
    split: Split
    device: torch.device

    @classmethod
    def of(cls, config: ModelConfig, split: Split, device: torch.device | str) -> DeviceLayout:
        """ValueError when the model cannot be split so."""
        split.check(config)
        return cls(config, split, torch.device(device))

    def parts(self, with_mtp: bool) -> Iterator[tuple[str, Part]]:
        """(path in the tree, part) one by one, in the model's order; each is allocated when it is asked for."""
        yield "embedding", self.embedding()
        for layer in range(self.config.num_hidden_layers):
            yield f"layers.{layer}", self.layer(layer)
        yield "head", self.head()
        for index in range(self.config.num_nextn_predict_layers if with_mtp else 0):
            yield f"mtp.{index}", self.mtp(index)

    def join(self, parts: dict[str, Part]) -> ModelWeights:
        """The model of all `parts`."""
        layers = tuple(part for path, part in parts.items() if path.startswith("layers."))
        mtp = tuple(part for path, part in parts.items() if path.startswith("mtp."))
        embedding, head = parts["embedding"], parts["head"]
        first = self.split.part(self.config.vocab_size).start
        return ModelWeights(self.split, first, embedding, layers, head, mtp)  # type: ignore[arg-type]  # by path

    def allocate(self, with_mtp: bool) -> ModelWeights:
        """All of it at once."""
        return self.join(dict(self.parts(with_mtp)))

    def embedding(self) -> torch.Tensor:
        return self._bf16(self._share(self.config.vocab_size), self.config.hidden_size)

    def head(self) -> HeadWeights:
        return HeadWeights(self._head_hyper(), self.embedding())

    def layer(self, layer: int) -> LayerWeights:
        """Main layers, then those of the MTP modules."""
        config = self.config
        ratio, hashed = config.compress_ratios[layer], layer < config.num_hash_layers
        rows = config.hc_mult * (2 + config.hc_mult)
        attn, ffn = self._hyper(rows, 3), self._hyper(rows, 3)
        return LayerWeights(ratio, attn, self._attention(ratio), ffn, self._moe(hashed))

    def mtp(self, index: int) -> MtpWeights:
        d = self.config.hidden_size
        layer = self.layer(self.config.num_hidden_layers + index)
        norms = self._bf16(d), self._bf16(d)
        return MtpWeights(self._fp8(d, d), self._fp8(d, d), *norms, layer, self._head_hyper())

    def _attention(self, ratio: int) -> AttentionWeights:
        config, d = self.config, self.config.hidden_size
        heads, groups = self._share(config.num_attention_heads), self._share(config.o_groups)
        compressor = indexer = side = None
        if ratio:
            parts = side_parts(config, ratio)
            side = self._bf16(sum(parts), d)
            rows = side.split(parts)
            compressor = self._compressor(rows[0], ratio, config.head_dim)
            if ratio == 4:
                wq_b = self._fp8(config.index_n_heads * config.index_head_dim, config.q_lora_rank)
                indexer = IndexerWeights(wq_b, rows[2], self._compressor(rows[1], ratio, config.index_head_dim))
        return AttentionWeights(
            wq_a_kv=self._fp8(config.q_lora_rank + config.head_dim, d),
            q_norm=self._bf16(config.q_lora_rank),
            kv_norm=self._bf16(config.head_dim),
            wq_b=self._fp8(heads * config.head_dim, config.q_lora_rank),
            sink=self._fp32(heads),
            wo_a=self._fp8(groups * config.o_lora_rank, heads // groups * config.head_dim),
            wo_b=self._fp8(d, groups * config.o_lora_rank),
            compressor=compressor,
            indexer=indexer,
            side=side,
        )

    def _compressor(self, kv_gate: torch.Tensor, ratio: int, dim: int) -> CompressorWeights:
        return CompressorWeights(kv_gate, self._fp32(ratio, overlap(ratio) * dim), self._bf16(dim))

    def _moe(self, hashed: bool) -> MoeWeights:
        config, d = self.config, self.config.hidden_size
        experts = self.split.expert_rows(config)
        shared = self._share(config.moe_intermediate_size * config.n_shared_experts)
        table = self._empty(torch.int32, config.vocab_size, config.num_experts_per_tok) if hashed else None
        return MoeWeights(
            gate=self._bf16(config.n_routed_experts, d),
            bias=None if hashed else self._fp32(config.n_routed_experts),
            table=table,
            experts=self._experts(experts.stop - experts.start),
            shared_w13=self._fp8(2 * shared, d),
            shared_w2=self._fp8(d, shared),
            first_expert=experts.start,
        )

    def _experts(self, count: int) -> PackedWeights:
        width = self.split.expert_width(self.config)
        d, m = self.config.hidden_size, width.stop - width.start
        if self.config.expert_dtype == "fp4":
            codes = [self._empty(torch.uint8, count, 2 * m, d // 2), self._empty(torch.uint8, count, d, m // 2)]
            block = mxfp4.BLOCK
            scales = [
                self._empty(torch.uint8, count, 2 * m, d // block),
                self._empty(torch.uint8, count, d, m // block),
            ]
        else:
            e4m3 = torch.float8_e4m3fn
            codes = [self._empty(e4m3, count, 2 * m, d), self._empty(e4m3, count, d, m)]
            scales = [
                self._fp32(count, 2 * (m // BLOCK), d // BLOCK),
                self._fp32(count, d // BLOCK, m // BLOCK),
            ]
        return PackedWeights(codes[0], scales[0], codes[1], scales[1])

    def _head_hyper(self) -> HyperWeights:
        return self._hyper(self.config.hc_mult, 1)

    def _hyper(self, rows: int, scales: int) -> HyperWeights:
        d = self.config.hidden_size
        fn = self._fp32(rows, self.config.hc_mult * d)
        return HyperWeights(fn, self._fp32(rows), self._fp32(scales), self._bf16(d))

    def _share(self, size: int) -> int:
        return size // self.split.world

    def _fp8(self, rows: int, columns: int) -> Fp8Weight:
        scale = self._empty(torch.uint8, -(-rows // BLOCK), columns // BLOCK)
        return Fp8Weight(self._empty(torch.float8_e4m3fn, rows, columns), scale)

    def _bf16(self, *shape: int) -> torch.Tensor:
        return self._empty(torch.bfloat16, *shape)

    def _fp32(self, *shape: int) -> torch.Tensor:
        return self._empty(torch.float32, *shape)

    def _empty(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)
