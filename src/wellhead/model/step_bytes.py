"""Least bytes that one step of a rank must stream, by the op that streams them: what bounds are made of."""

from __future__ import annotations

from collections import Counter

from wellhead.model.config import ModelConfig
from wellhead.model.device_weights import LayerWeights, ModelWeights, leaves
from wellhead.model.numerics import Numerics

RECORD, INDEX_KEY = 584, {"fp8": 132, "fp4": 68}
EMBEDDING = "embedding"  # rows that torch looks up
_OF_FIELD = {
    "wo_a": "output_projection",
    "side": "bf16_linear", "kv_gate": "bf16_linear", "weights_proj": "bf16_linear", "vocabulary": "bf16_linear",
    "ape": "compressor", "compressor": "compressor",
    "gate": "routing", "bias": "routing",
    "q_norm": "norm_quant", "kv_norm": "kv_store", "sink": "sparse_mla",
    "hyper": "hyper_connection", "attn_hyper": "hyper_connection", "ffn_hyper": "hyper_connection",
}  # fmt: skip


def uniform_experts(config: ModelConfig, tokens: int) -> float:
    """Distinct experts that `tokens` tokens choose of a layer's, if every choice is as likely."""
    count = config.n_routed_experts
    return count * (1 - (1 - config.num_experts_per_tok / count) ** tokens)


def step_bytes(
    weights: ModelWeights, config: ModelConfig, numerics: Numerics, *, tokens: int, requests: int, context: int,
    distinct: float | None = None,
) -> Counter[str]:  # fmt: skip
    """Of a step of `tokens` tokens of requests at `context` tokens each: every weight once, `distinct` experts of a
    layer (None: as many as uniform draws choose), and each request's caches once: of the entries that an indexer
    selects among, as many as its tokens select at most.
    """
    found = Counter({EMBEDDING: 2 * tokens * config.hidden_size})
    for path, tensor in leaves(weights.head, "head"):
        found[op_of(path)] += tensor.nbytes
    for layer in weights.layers:
        found += layer_bytes(
            layer, config, numerics, tokens=tokens, requests=requests, context=context, distinct=distinct
        )
    return found


def layer_bytes(
    layer: LayerWeights, config: ModelConfig, numerics: Numerics, *, tokens: int, requests: int, context: int,
    distinct: float | None = None,
) -> Counter[str]:  # fmt: skip
    """One block's part."""
    found: Counter[str] = Counter()
    chosen = (uniform_experts(config, tokens) if distinct is None else distinct) / config.n_routed_experts
    for path, tensor in leaves(layer):
        if not path.endswith("moe.table"):
            found[op_of(path)] += int(tensor.nbytes * chosen) if ".experts." in path else tensor.nbytes
    entries = context // layer.ratio if layer.ratio else 0
    each = tokens // requests
    attended = min(entries, each * config.index_topk) if layer.ratio == 4 else entries
    found["sparse_mla"] += requests * RECORD * (min(context, config.sliding_window + each - 1) + attended)
    if layer.ratio == 4:
        found["indexer"] += requests * entries * INDEX_KEY[numerics.index_keys]
    return found


def op_of(path: str) -> str:
    """The op that reads a weight, by its path in the tree."""
    parts = path.split(".")
    if "experts" in parts:
        return "moe"
    return next((_OF_FIELD[part] for part in reversed(parts) if part in _OF_FIELD), "linear")
