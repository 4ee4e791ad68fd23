"""How fast a plan could be: the bound that a card's memory and tensor cores set, and what measured shares of it make of
that. Predictions, called so wherever they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from wellhead.dispatch.cards import CardModel
from wellhead.model import measured
from wellhead.model.config import ModelConfig
from wellhead.model.device_layout import DeviceLayout
from wellhead.model.device_weights import ModelWeights, leaves, nbytes
from wellhead.model.numerics import Numerics
from wellhead.model.split import Split
from wellhead.model.step_bytes import layer_bytes, step_bytes


@dataclass(frozen=True)
class Rate:
    """One step of `tokens` tokens over all ranks: seconds that the bound allows, and seconds predicted."""

    tokens: float
    bound_seconds: float
    seconds: float

    @property
    def bound(self) -> float:
        """Tokens a second."""
        return self.tokens / self.bound_seconds

    @property
    def predicted(self) -> float:
        return self.tokens / self.seconds


def decode_rate(
    card: CardModel, config: ModelConfig, numerics: Numerics, split: Split, requests: int, context: int, drafts: int = 0
) -> Rate:
    """One decode step of `requests` at `context` tokens each, whose `drafts` are all wrong: a token a request. With n
    of them right in the mean it makes 1 + n times as many in the same time.
    """
    weights, places = _weights(config, split, drafts > 0), requests * (1 + drafts)
    moved = step_bytes(weights, config, numerics, tokens=places, requests=requests, context=context).total()
    for module in weights.mtp:
        once = nbytes(module) - nbytes(module.layer) + nbytes(weights.head)
        own = layer_bytes(module.layer, config, numerics, tokens=requests, requests=requests, context=context)
        moved += drafts * (once + own.total())
    layers = config.num_hidden_layers + drafts
    bound = moved / (card.gb_s * 1e9)
    launches = measured.WAITING_LAUNCHES_A_LAYER * layers * measured.LAUNCH_SECONDS
    streaming = bound / measured.ROOF / measured.decode_share(requests, context)
    return Rate(requests, bound, max(streaming, launches) + _reduces(card, config, split, layers, places))


def prefill_rate(
    card: CardModel, config: ModelConfig, numerics: Numerics, split: Split, chunk: int, context: int
) -> Rate:
    """Steps of `chunk` tokens of one prompt of `context` tokens, at the mean of its positions."""
    weights, middle = _weights(config, split, False), max(1, context // 2)
    chunk = min(chunk, context)
    layers = [
        layer_bytes(layer, config, numerics, tokens=chunk, requests=1, context=middle) for layer in weights.layers
    ]
    streamed = sum(layer.total() for layer in layers) / (card.gb_s * 1e9)
    fp8, bf16 = _flops(weights, config, split, middle)
    computed = chunk * (fp8 / (card.fp8_tflops or card.bf16_tflops) + bf16 / card.bf16_tflops) / 1e12
    predicted = streamed / measured.ROOF / measured.PREFILL_BYTES + computed / measured.PREFILL_FLOPS
    return Rate(
        chunk, max(streamed, computed), predicted + _reduces(card, config, split, config.num_hidden_layers, chunk)
    )


@lru_cache(maxsize=8)
def _weights(config: ModelConfig, split: Split, with_mtp: bool) -> ModelWeights:
    return DeviceLayout.of(config, split, "meta").allocate(with_mtp)


def _flops(weights: ModelWeights, config: ModelConfig, split: Split, position: int) -> tuple[float, float]:
    """(of E4M3 and FP4 products, of the others and attention) that a token at `position` costs a rank."""
    fp8 = bf16 = 0.0
    heads, share = config.num_attention_heads // split.world, config.num_experts_per_tok / config.n_routed_experts
    for layer in weights.layers:
        for path, tensor in leaves(layer):
            of_experts, name = ".experts." in path, path.rsplit(".", 1)[-1]
            if of_experts and name in ("w13", "w2"):
                fp8 += 2 * share * tensor.numel() * (2 if tensor.dtype is torch.uint8 else 1)
            elif not of_experts and tensor.dtype is torch.float8_e4m3fn:
                fp8 += 2 * tensor.numel()
            elif tensor.dim() == 2 and name in ("side", "gate", "fn"):
                bf16 += 2 * tensor.numel()
        entries = position / layer.ratio if layer.ratio else 0.0
        attended = min(entries, config.index_topk) if layer.ratio == 4 else entries
        bf16 += heads * 4 * config.head_dim * (min(position, config.sliding_window) + attended)
        if layer.ratio == 4:
            fp8 += config.index_n_heads * 2 * config.index_head_dim * entries
    return fp8, bf16


def _reduces(card: CardModel, config: ModelConfig, split: Split, layers: int, tokens: int) -> float:
    """Two sums over the ranks a layer, bf16, each token's width: a latency, then a ring over the wire."""
    if split.world == 1:
        return 0.0
    moved = 2 * (split.world - 1) / split.world * 2 * tokens * config.hidden_size
    short = min(moved, measured.REDUCE_BYTES)
    ring = short / (measured.REDUCE_GB_S * 1e9) + (moved - short) / (card.link_gb_s * 1e9)
    return 2 * layers * (measured.REDUCE_SECONDS + ring)
