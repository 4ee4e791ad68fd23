"""One transformer block: hyper-connections around attention and around the experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.model.config import ModelConfig
from wellhead.model.layers_attention import Attention
from wellhead.model.layers_moe import MoE
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.parameters import Named
from wellhead.model.split import Split
from wellhead.model.state import LayerState
from wellhead.model.step import Step
from wellhead.ops.hyper_connection import reference as hyper_connection
from wellhead.ops.linear import reference as linear
from wellhead.ops.norm_quant import reference as norm_quant


@dataclass(frozen=True)
class HyperConnection:
    """Mixing weights of one site: fn [n*(n+2), n*d] (head: [n, n*d]), base, scale; fp32."""

    fn: torch.Tensor
    base: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def take(cls, named: Named, prefix: str) -> HyperConnection:
        return cls(named[f"{prefix}_fn"], named[f"{prefix}_base"], named[f"{prefix}_scale"])


class Block:
    """X -> X' over streams [T, n, d]: attention site, then expert site, each as post(f(norm(pre(X))), X)."""

    def __init__(
        self, named: Named, prefix: str, layer: int, ratio: int, config: ModelConfig, numerics: Numerics,
        split: Split = WHOLE, group: Group = ALONE,
    ):  # fmt: skip
        self._config = config
        self.attn = Attention(named, f"{prefix}attn.", layer, ratio, config, numerics, group)
        self.ffn = MoE(named, f"{prefix}ffn.", config, numerics, split, group)
        self._sites = tuple(
            (HyperConnection.take(named, f"{prefix}hc_{site}"), named[f"{prefix}{site}_norm"])
            for site in ("attn", "ffn")
        )

    def forward(self, streams: torch.Tensor, step: Step, state: LayerState) -> torch.Tensor:
        u, post, comb = self._enter(0, streams)
        streams = hyper_connection.post(self.attn.forward(u, step, state), streams, post, comb)
        u, post, comb = self._enter(1, streams)
        return hyper_connection.post(self.ffn.forward(u, step.batch.token_ids), streams, post, comb)

    def _enter(self, site: int, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mixing, norm = self._sites[site]
        config = self._config
        u, post, comb = hyper_connection.pre(
            streams, mixing.fn, mixing.base, mixing.scale,
            norm_eps=config.rms_norm_eps, hc_eps=config.hc_eps, iterations=config.hc_sinkhorn_iters,
        )  # fmt: skip
        return norm_quant.rms_norm(u, norm, config.rms_norm_eps), post, comb


class Head:
    """Streams [T, n, d] -> fp32 logits [T, vocab]: contraction, norm, and the vocabulary matrix (shared with
    MTP).
    """

    def __init__(self, named: Named, prefix: str, config: ModelConfig, group: Group = ALONE):
        self._config, self._group = config, group
        self._mixing = HyperConnection.take(named, f"{prefix}hc_head")
        self._norm = named[f"{prefix}norm"]
        self._vocabulary = named["head"]

    def forward(self, streams: torch.Tensor) -> torch.Tensor:
        mixing, config = self._mixing, self._config
        u = hyper_connection.head(
            streams, mixing.fn, mixing.base, mixing.scale, norm_eps=config.rms_norm_eps, hc_eps=config.hc_eps
        )
        u = norm_quant.rms_norm(u, self._norm, config.rms_norm_eps)
        return self._group.gather(linear.product(u, self._vocabulary))
