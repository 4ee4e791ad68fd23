"""The tensor table of the published checkpoint: every official name with its shape and stored dtype.

Matrices are [out, in]. An `F8_E4M3` weight [o, i] has a `.scale` [ceil(o/128), ceil(i/128)] beside it; an FP4
expert is `I8`, two values a byte along the input, with one `F8_E8M0` per output row and 32 inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from wellhead.formats import block_fp8, mxfp4
from wellhead.model.config import ModelConfig

BYTES = {"BF16": 2, "F32": 4, "I64": 8, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as it must lie on disk; `dtype` is the safetensors code."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]


def expected_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor of the checkpoint in model order, each weight directly before its scale."""
    vocab, dim = config.vocab_size, config.hidden_size
    yield TensorSpec("embed.weight", (vocab, dim), "BF16")
    for layer, ratio in enumerate(config.compress_ratios[: config.num_hidden_layers]):
        yield from _layer(config, f"layers.{layer}.", ratio, hashed=layer < config.num_hash_layers)
    yield TensorSpec("norm.weight", (dim,), "BF16")
    yield from _hyper_connection(config, "hc_head", config.hc_mult, 1)
    yield TensorSpec("head.weight", (vocab, dim), "BF16")
    for layer in range(config.num_nextn_predict_layers):
        yield from _mtp(config, f"mtp.{layer}.")


def _mtp(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    dim = config.hidden_size
    for name in ("e_proj", "h_proj"):
        yield from _fp8(config, prefix + name, dim, dim)
    for name in ("enorm", "hnorm"):
        yield TensorSpec(f"{prefix}{name}.weight", (dim,), "BF16")
    yield from _layer(config, prefix, 0, hashed=False)
    yield TensorSpec(f"{prefix}norm.weight", (dim,), "BF16")
    yield from _hyper_connection(config, f"{prefix}hc_head", config.hc_mult, 1)


def _layer(config: ModelConfig, prefix: str, ratio: int, hashed: bool) -> Iterator[TensorSpec]:
    streams = config.hc_mult
    for site in ("attn", "ffn"):
        # pre, post and the streams x streams mixing matrix
        yield from _hyper_connection(config, f"{prefix}hc_{site}", streams * (2 + streams), 3)
        yield TensorSpec(f"{prefix}{site}_norm.weight", (config.hidden_size,), "BF16")
    yield from _attention(config, f"{prefix}attn.", ratio)
    yield from _moe(config, f"{prefix}ffn.", hashed)


def _hyper_connection(config: ModelConfig, prefix: str, rows: int, scales: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}_fn", (rows, config.hc_mult * config.hidden_size), "F32")
    yield TensorSpec(f"{prefix}_base", (rows,), "F32")
    yield TensorSpec(f"{prefix}_scale", (scales,), "F32")


def _attention(config: ModelConfig, prefix: str, ratio: int) -> Iterator[TensorSpec]:
    dim, q_rank = config.hidden_size, config.q_lora_rank
    heads, head_dim = config.num_attention_heads, config.head_dim
    output_rank = config.o_groups * config.o_lora_rank
    yield TensorSpec(f"{prefix}attn_sink", (heads,), "F32")
    yield from _fp8(config, f"{prefix}wq_a", q_rank, dim)
    yield TensorSpec(f"{prefix}q_norm.weight", (q_rank,), "BF16")
    yield from _fp8(config, f"{prefix}wq_b", heads * head_dim, q_rank)
    yield from _fp8(config, f"{prefix}wkv", head_dim, dim)
    yield TensorSpec(f"{prefix}kv_norm.weight", (head_dim,), "BF16")
    yield from _fp8(config, f"{prefix}wo_a", output_rank, heads * head_dim // config.o_groups)
    yield from _fp8(config, f"{prefix}wo_b", dim, output_rank)
    if ratio:
        yield from _compressor(config, f"{prefix}compressor.", ratio, head_dim)
    if ratio == 4:
        yield from _fp8(config, f"{prefix}indexer.wq_b", config.index_n_heads * config.index_head_dim, q_rank)
        yield TensorSpec(f"{prefix}indexer.weights_proj.weight", (config.index_n_heads, dim), "BF16")
        yield from _compressor(config, f"{prefix}indexer.compressor.", ratio, config.index_head_dim)


def _compressor(config: ModelConfig, prefix: str, ratio: int, width: int) -> Iterator[TensorSpec]:
    # ratio 4 overlaps: each token carries a previous-window and a current-window role
    rows = 2 * width if ratio == 4 else width
    yield TensorSpec(f"{prefix}ape", (ratio, rows), "F32")
    for name in ("wkv", "wgate"):
        yield TensorSpec(f"{prefix}{name}.weight", (rows, config.hidden_size), "BF16")
    yield TensorSpec(f"{prefix}norm.weight", (width,), "BF16")


def _moe(config: ModelConfig, prefix: str, hashed: bool) -> Iterator[TensorSpec]:
    dim, inter, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    yield TensorSpec(f"{prefix}gate.weight", (experts, dim), "BF16")
    if hashed:
        yield TensorSpec(f"{prefix}gate.tid2eid", (config.vocab_size, config.num_experts_per_tok), "I64")
    else:
        yield TensorSpec(f"{prefix}gate.bias", (experts,), "F32")
    routed = _fp4 if config.expert_dtype == "fp4" else _fp8
    for expert in range(experts):
        yield from routed(config, f"{prefix}experts.{expert}.w1", inter, dim)
        yield from routed(config, f"{prefix}experts.{expert}.w2", dim, inter)
        yield from routed(config, f"{prefix}experts.{expert}.w3", inter, dim)
    shared = inter * config.n_shared_experts
    yield from _fp8(config, f"{prefix}shared_experts.w1", shared, dim)
    yield from _fp8(config, f"{prefix}shared_experts.w2", dim, shared)
    yield from _fp8(config, f"{prefix}shared_experts.w3", shared, dim)


def _fp8(config: ModelConfig, name: str, rows: int, cols: int) -> Iterator[TensorSpec]:
    blocks = (-(-rows // block_fp8.BLOCK), -(-cols // block_fp8.BLOCK))
    yield TensorSpec(f"{name}.weight", (rows, cols), "F8_E4M3")
    yield TensorSpec(f"{name}.scale", blocks, "F8_E8M0" if config.scale_dtype == "ue8m0" else "F32")


def _fp4(config: ModelConfig, name: str, rows: int, cols: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (rows, cols // 2), "I8")
    yield TensorSpec(f"{name}.scale", (rows, cols // mxfp4.BLOCK), "F8_E8M0")
