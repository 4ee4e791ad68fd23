"""Experts of a block: hash or learned routing, the chosen experts and the shared one."""

from __future__ import annotations

import torch

from wellhead.model.config import ModelConfig
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.parameters import Named
from wellhead.model.split import Split
from wellhead.ops.moe import reference as moe
from wellhead.ops.routing import reference as routing


class MoE:
    """y = sum over chosen experts (fp32) + shared expert, over the ranks, rounded once to the activations' dtype."""

    def __init__(
        self, named: Named, prefix: str, config: ModelConfig, numerics: Numerics,
        split: Split = WHOLE, group: Group = ALONE,
    ):  # fmt: skip
        self._config, self._numerics, self._group = config, numerics, group
        self._mine = split.expert_rows(config)
        self._gate = named[f"{prefix}gate"]
        self._bias = named.get(f"{prefix}gate.bias")
        self._table = named.get(f"{prefix}gate.tid2eid")
        if (self._bias is None) == (self._table is None):
            raise ValueError(f"{prefix}gate needs either a bias or a tid2eid table; the checkpoint has both or neither")
        self._w1, self._w3, self._w2 = (_experts(named, f"{prefix}experts.{w}") for w in ("w1", "w3", "w2"))
        self._shared = tuple(named[f"{prefix}shared_experts.{w}"] for w in ("w1", "w3", "w2"))

    def forward(self, x: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """x [T, d]; token_ids [T], read by hash layers only."""
        config, round_input = self._config, self._numerics.round_input
        scores = routing.affinity(x, self._gate)
        if self._table is not None:
            ids, weights = routing.choose_by_token(scores, config.routed_scaling_factor, self._table, token_ids)
        else:
            assert self._bias is not None
            ids, weights = routing.choose(scores, config.num_experts_per_tok, config.routed_scaling_factor, self._bias)
        ids = torch.where((ids >= self._mine.start) & (ids < self._mine.stop), ids - self._mine.start, -1)
        limit = config.swiglu_limit
        y = moe.routed(x, ids, weights, self._w1, self._w3, self._w2, limit, round_input)
        w1, w3, w2 = self._shared
        y += moe.expert(x, w1, w3, w2, limit, round_input).float()
        self._group.reduce(y)
        return y.to(x.dtype)


def _experts(named: Named, name: str) -> moe.Experts:
    scale = named.get(f"{name}.scale")
    return named[name] if scale is None else moe.PackedExperts(named[name], scale)
