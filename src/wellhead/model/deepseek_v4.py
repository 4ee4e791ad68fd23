"""DeepSeek-V4: embedding to four residual streams, blocks, head. Source: the published reference inference
code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from wellhead.dispatch.choose import AUTO
from wellhead.model.batch import Batch
from wellhead.model.choices import host_choices
from wellhead.model.config import ModelConfig
from wellhead.model.layers import Block, Head
from wellhead.model.layers_attention import Ablation
from wellhead.model.mtp import MTP
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.parameters import Named
from wellhead.model.split import Split
from wellhead.model.state import ModelState
from wellhead.model.step import Step, frequencies


class DeepseekV4:
    """The model over weights by official name (`load_parameters`); it holds no request state.

    `forward` reads and writes a `ModelState` allocated for the same config and numerics. A rank of several has its
    part of the weights (`split`) and runs in step with the others (`group`): the same batches, the same logits.
    """

    def __init__(
        self,
        named: Named,
        config: ModelConfig,
        numerics: Numerics,
        *,
        impl: str | Mapping[str, str] = AUTO,
        ablation: Ablation | str = Ablation.NONE,
        split: Split = WHOLE,
        group: Group = ALONE,
    ):
        if (split.rank, split.world) != (group.rank, group.world):
            raise ValueError(f"{split} in a group of rank {group.rank} of {group.world}, expected the same")
        self._choices = host_choices(impl)
        self.config, self.numerics, self.ablation = config, numerics, Ablation(ablation)
        self._embedding, self._group = named["embed"], group
        self._first_token = split.part(config.vocab_size).start
        self._blocks = [
            Block(named, f"layers.{layer}.", layer, config.compress_ratios[layer], config, numerics, split, group)
            for layer in range(config.num_hidden_layers)
        ]
        self._head = Head(named, "", config, group)
        self._mtp = [
            MTP(named, i, config, numerics, split, group)
            for i in range(config.num_nextn_predict_layers)
            if f"mtp.{i}.enorm" in named
        ]
        self._frequencies = frequencies(config)
        for block in self._blocks:
            block.attn.ablation = self.ablation

    def allocate(self, num_pages: int, num_slots: int, window_pages: int | None = None) -> ModelState:
        """Caches for this model, MTP's included when it was loaded."""
        return ModelState.allocate(
            self.config, self.numerics, num_pages, num_slots, window_pages=window_pages, with_mtp=bool(self._mtp)
        )

    @torch.inference_mode()
    def forward(self, batch: Batch, state: ModelState) -> torch.Tensor:
        """Run the batch's tokens, updating `state`; streams [T, n, d] behind the last block."""
        step = self._step(batch)
        streams = self._embed(batch.token_ids).unsqueeze(1).repeat(1, self.config.hc_mult, 1)
        for block, layer_state in zip(self._blocks, state.layers, strict=True):
            streams = block.forward(streams, step, layer_state)
        return streams

    @torch.inference_mode()
    def logits(self, streams: torch.Tensor) -> torch.Tensor:
        """fp32 [N, vocab] of streams [N, n, d]."""
        return self._head.forward(streams)

    @torch.inference_mode()
    def draft(
        self, streams: torch.Tensor, next_token_ids: torch.Tensor, batch: Batch, state: ModelState
    ) -> torch.Tensor:
        """The MTP module's streams [T, n, d] from streams [T, n, d] at the batch's positions, `forward`'s or its own,
        and the ids [T] behind them. Writes its own window pool.
        """
        if not self._mtp:
            raise ValueError("the MTP module is not loaded; load the model with with_mtp=True")
        return self._mtp[0].forward(streams, self._embed(next_token_ids), self._step(batch), state.mtp[0])

    @torch.inference_mode()
    def draft_logits(self, streams: torch.Tensor) -> torch.Tensor:
        """fp32 [N, vocab] of `draft`'s streams [N, n, d]."""
        return self._mtp[0].logits(streams)

    def describe(self) -> list[tuple[str, str, str]]:
        """(operation, implementation, why) of every operation this model runs."""
        return self._choices.rows()

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        if self._group.world == 1:
            return self._embedding[token_ids].to(self.numerics.dtype)
        local = token_ids - self._first_token
        mine = (local >= 0) & (local < len(self._embedding))
        rows = self._embedding[torch.where(mine, local, 0)].masked_fill_(~mine.unsqueeze(1), 0)
        self._group.reduce(rows)
        return rows.to(self.numerics.dtype)

    def _step(self, batch: Batch) -> Step:
        return Step(batch, self._frequencies, self.config.sliding_window)
