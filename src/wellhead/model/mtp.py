"""Multi-token prediction: one more block that reads the last layer's streams and the next token's embedding.

X'_j = We norm(E[next id]) + Wh norm(X_j) per stream, then a window-only block with its own cache and its own
head contraction and norm; embedding and vocabulary matrix are the main model's. Position p is that of the
hidden state. Source: DeepSeek-V4 reference inference (MTPBlock); the idea is Gloeckle et al. 2024, chained as
in DeepSeek-V3.
"""

from __future__ import annotations

import torch

from wellhead.model.config import ModelConfig
from wellhead.model.layers import Block, Head
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.parameters import Named
from wellhead.model.split import Split
from wellhead.model.state import LayerState
from wellhead.model.step import Step
from wellhead.ops.linear import reference as linear
from wellhead.ops.norm_quant import reference as norm_quant


class MTP:
    """One MTP module; `layer` counts from num_hidden_layers."""

    def __init__(
        self, named: Named, index: int, config: ModelConfig, numerics: Numerics,
        split: Split = WHOLE, group: Group = ALONE,
    ):  # fmt: skip
        prefix = f"mtp.{index}."
        layer = config.num_hidden_layers + index
        self._eps, self._numerics = config.rms_norm_eps, numerics
        self._enorm, self._hnorm, self._e_proj, self._h_proj = (
            named[prefix + name] for name in ("enorm", "hnorm", "e_proj", "h_proj")
        )
        self._block = Block(named, prefix, layer, config.compress_ratios[layer], config, numerics, split, group)
        self._head = Head(named, prefix, config, group)

    def forward(
        self, streams: torch.Tensor, next_embedding: torch.Tensor, step: Step, state: LayerState
    ) -> torch.Tensor:
        """streams [T, n, d], embedding of the tokens at p+1 [T, d] -> streams [T, n, d] of this block."""
        round_input = self._numerics.round_input
        e = norm_quant.rms_norm(next_embedding, self._enorm, self._eps)
        h = norm_quant.rms_norm(streams, self._hnorm, self._eps)
        mixed = linear.linear(round_input(e), self._e_proj).unsqueeze(-2)
        return self._block.forward(mixed + linear.linear(round_input(h), self._h_proj), step, state)

    def logits(self, streams: torch.Tensor) -> torch.Tensor:
        """fp32 [N, vocab] of `forward`'s streams [N, n, d]."""
        return self._head.forward(streams)
