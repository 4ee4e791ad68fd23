"""The compressor, used for KV records and for index keys, and the indexer that chooses among them."""

from __future__ import annotations

import torch

from wellhead.model.config import ModelConfig
from wellhead.model.numerics import Numerics
from wellhead.model.parameters import Named
from wellhead.model.state import LayerState
from wellhead.model.step import Rotation, Step
from wellhead.ops.compressor import reference as compressor
from wellhead.ops.indexer import reference as indexer
from wellhead.ops.linear import reference as linear
from wellhead.ops.norm_quant import reference as norm_quant
from wellhead.ops.rope import reference as rope
from wellhead.ops.topk import reference as topk

SCORES = 1 << 22  # index scores sorted at a time


class Compressor:
    """Completed blocks of a step -> their entries, normed and rotated at the block's first token, not yet
    stored.
    """

    def __init__(self, named: Named, prefix: str, config: ModelConfig):
        self._eps = config.rms_norm_eps
        self._wkv, self._wgate, self._ape, self._norm = (
            named[prefix + name] for name in ("wkv", "wgate", "ape", "norm")
        )

    def forward(
        self, x: torch.Tensor, step: Step, state: torch.Tensor, blocks: compressor.Blocks, rotation: Rotation
    ) -> torch.Tensor:
        """x [T, d] -> [E, D] in x's dtype; `state` keeps what later blocks need."""
        kv, score = compressor.project(x, self._wkv, self._wgate, self._ape, step.batch.positions)
        pooled = compressor.advance(state, kv, score, blocks).to(x.dtype)
        if not pooled.shape[0]:
            return pooled
        return rope.rotate(norm_quant.rms_norm(pooled, self._norm, self._eps), *rotation)


class Indexer:
    """Index keys of completed blocks, and each token's choice of compressed entries (ratio 4)."""

    def __init__(self, named: Named, prefix: str, config: ModelConfig, numerics: Numerics):
        self._config, self._numerics = config, numerics
        self._wq_b = named[f"{prefix}wq_b"]
        self._weights_proj = named[f"{prefix}weights_proj"]
        self._compressor = Compressor(named, f"{prefix}compressor.", config)
        self._scale = config.index_head_dim**-0.5 * config.index_n_heads**-0.5

    def write(self, x: torch.Tensor, step: Step, state: LayerState) -> None:
        """Store the index keys of the blocks this step completes."""
        assert state.index_keys is not None and state.index_compressor is not None
        blocks, slots, rotation = step.blocks(state.ratio)
        keys = self._compressor.forward(x, step, state.index_compressor, blocks, rotation)
        indexer.write_keys(state.index_keys, slots, self._spread(keys))

    def choose(self, x: torch.Tensor, rounded_latent: torch.Tensor, step: Step, state: LayerState) -> torch.Tensor:
        """int64 [T, index_topk] entries, ascending, -1 padded; request by request over its own keys."""
        assert state.index_keys is not None
        config, batch = self._config, step.batch
        q = linear.linear(rounded_latent, self._wq_b).unflatten(-1, (config.index_n_heads, config.index_head_dim))
        q = self._spread(rope.rotate(q, *step.rotation(state.ratio)))
        q = indexer.round_query(q, state.index_keys)
        weights = linear.linear(x, self._weights_proj).float() * self._scale
        visible = step.visible(state.ratio)
        chosen = torch.full((x.shape[0], config.index_topk), -1, dtype=torch.int64)
        for low, high in batch.ranges:
            if low == high:
                continue
            part = slice(low, high)
            entries = torch.arange(int(visible[high - 1]))
            if entries.shape[0] <= config.index_topk:
                chosen[part] = topk.first(visible[part], config.index_topk)
                continue
            slots = batch.slots(entries, state.ratio, torch.full_like(entries, low))
            keys = indexer.read_keys(state.index_keys, slots)
            step_tokens = max(1, SCORES // keys.shape[0])
            for first in range(low, high, step_tokens):
                part = slice(first, min(high, first + step_tokens))
                scores = indexer.sliced_logits(q[part], keys, weights[part])
                chosen[part] = topk.select(scores, visible[part], config.index_topk)
        return chosen

    def _spread(self, x: torch.Tensor) -> torch.Tensor:
        # the rotation is orthogonal: without quantisation it changes nothing
        return indexer.rotate(x) if self._numerics.quantize and x.numel() else x
