"""Attention of a block: window records plus, by the layer's ratio, compressed entries chosen or all.

Every token of a step is written to the caches before any is read, and reading is by slot: prefill in any
chunking, decode and mixed batches are the same computation.
"""

from __future__ import annotations

from enum import StrEnum

import torch

from wellhead.model.config import ModelConfig
from wellhead.model.layers_compressor import Compressor, Indexer
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, Group
from wellhead.model.parameters import Named
from wellhead.model.state import LayerState
from wellhead.model.step import Step
from wellhead.ops.kv_store import reference as kv_store
from wellhead.ops.linear import reference as linear
from wellhead.ops.norm_quant import reference as norm_quant
from wellhead.ops.rope import reference as rope
from wellhead.ops.sparse_mla import reference as sparse_mla
from wellhead.ops.topk import reference as topk


class Ablation(StrEnum):
    """A deliberate fault for tests and evaluations: what attention selects besides the window."""

    NONE = "none"
    NO_COMPRESSED = "no_compressed"
    RANDOM_SELECTED = "random_selected"


class Attention:
    """Multi-query latent attention with a sink; x [T, d] -> [T, d]. A rank of several has its share of the heads and
    output groups; their sum is rounded once.
    """

    def __init__(
        self, named: Named, prefix: str, layer: int, ratio: int, config: ModelConfig, numerics: Numerics,
        group: Group = ALONE,
    ):  # fmt: skip
        self.ratio = ratio
        self.ablation = Ablation.NONE
        self._layer, self._config, self._numerics = layer, config, numerics
        self._wq_a, self._q_norm, self._wq_b, self._wkv, self._kv_norm, self._wo_b, self._sink = (
            named[prefix + name] for name in ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_b", "attn_sink")
        )
        self._group, self._heads = group, config.num_attention_heads // group.world
        self._wo_a = named[f"{prefix}wo_a"].unflatten(0, (config.o_groups // group.world, -1))
        self._compressor = self._indexer = None
        if ratio:
            self._compressor = Compressor(named, f"{prefix}compressor.", config)
        if ratio == 4:
            self._indexer = Indexer(named, f"{prefix}indexer.", config, numerics)

    def forward(self, x: torch.Tensor, step: Step, state: LayerState) -> torch.Tensor:
        config, round_input = self._config, self._numerics.round_input
        eps = config.rms_norm_eps
        cos, sin = step.rotation(self.ratio)
        a = round_input(x)
        latent = norm_quant.rms_norm(linear.linear(a, self._wq_a), self._q_norm, eps)
        rounded_latent = round_input(latent)
        q = linear.linear(rounded_latent, self._wq_b).unflatten(-1, (self._heads, config.head_dim))
        q = rope.rotate(norm_quant.rms_norm(q, None, eps), cos, sin)
        kv = rope.rotate(norm_quant.rms_norm(linear.linear(a, self._wkv), self._kv_norm, eps), cos, sin)
        kv_store.write(state.window, step.write_slots, kv)

        pools = [(state.window, step.window_slots)]
        if self._compressor is not None:
            assert state.compressed is not None and state.compressor is not None
            blocks, slots, rotation = step.blocks(self.ratio)
            entries = self._compressor.forward(x, step, state.compressor, blocks, rotation)
            kv_store.write(state.compressed, slots, entries)
            chosen = self._select(x, rounded_latent, step, state)
            if chosen is not None:
                pools.append((state.compressed, step.batch.slots(chosen, self.ratio)))

        o = sparse_mla.attend_paged(q, pools, self._sink, config.head_dim**-0.5)
        o = rope.rotate(o, cos, sin, inverse=True)
        grouped = o.flatten(1).unflatten(-1, (len(self._wo_a), -1))
        z = linear.grouped(grouped, self._wo_a).flatten(1)
        y = linear.product(round_input(z), self._wo_b)
        self._group.reduce(y)
        return y.to(x.dtype)

    def _select(
        self, x: torch.Tensor, rounded_latent: torch.Tensor, step: Step, state: LayerState
    ) -> torch.Tensor | None:
        """int64 [T, K] entries each token attends, ascending, -1 padded; None for no entries at all."""
        visible = step.visible(self.ratio)
        most = int(visible.max()) if visible.numel() else 0
        if self._indexer is not None:
            # keys are written even when every entry is visible to all: later tokens will choose among them
            self._indexer.write(x, step, state)
        if self.ablation is Ablation.NO_COMPRESSED or most == 0:
            return None
        if self._indexer is None or most <= self._config.index_topk:
            return topk.first(visible, most)
        if self.ablation is Ablation.RANDOM_SELECTED:
            scores = _random_scores(step.batch.positions, most, self._layer)
            return topk.select(scores, visible, self._config.index_topk)
        return self._indexer.choose(x, rounded_latent, step, state)


def _random_scores(positions: torch.Tensor, entries: int, layer: int) -> torch.Tensor:
    """Scores of (layer, position, entry) alone, so that an ablated run does not depend on its batch or
    chunks.
    """
    mixed = positions.unsqueeze(-1) * 2654435761 + torch.arange(entries) * 40503 + layer * 69069 + 12345
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
    return mixed.float()
