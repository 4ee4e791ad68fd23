"""DeepSeek-V4 in kernels: the computation of `deepseek_v4` over one rank's device weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from wellhead.dispatch.capability import here
from wellhead.dispatch.choose import AUTO
from wellhead.model import device_layers
from wellhead.model.choices import Choices, choose_ops
from wellhead.model.config import ModelConfig
from wellhead.model.device_kernels import KERNELS, functions_of
from wellhead.model.device_step import DeviceStep, StepInputs
from wellhead.model.device_weights import HyperWeights, LayerWeights, ModelWeights
from wellhead.model.device_workspace import Workspace
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, Reduce
from wellhead.model.split import Split
from wellhead.model.state import LayerState, ModelState, pages_for
from wellhead.model.step import frequencies

Gather = Callable[[torch.Tensor], torch.Tensor]


def chosen(config: ModelConfig, numerics: Numerics, split: Split, impl: str | Mapping[str, str] = AUTO) -> Choices:
    """Every op's implementation for that part of a model in this process. ValueError or NotImplementedError for what
    the device model cannot run, whose weights need not be loaded to say so.
    """
    if not numerics.quantize:
        raise ValueError("numerics is 'exact'; the kernels compute 'checkpoint', use --device cpu for the other")
    if config.expert_dtype != "fp4":
        raise NotImplementedError(f"expert_dtype is {config.expert_dtype!r}; this model runs 'fp4' experts so far")
    choices = choose_ops(config, split, here(), impl)
    for choice in choices.all:
        if choice.op in KERNELS:
            functions_of(choice.op, choice.impl)
    return choices


class DeviceModel:
    """Holds weights and frequencies, no request state and no buffers: `workspace` makes those for a size of step.

    `impl` names the implementation of every op, or of some in a mapping; the others have the first that fits.
    `reduce` adds a rank's partial sums over the ranks, in place; `gather` puts the ranks' columns side by side. Nothing
    here synchronises with the host.
    """

    def __init__(
        self, weights: ModelWeights, config: ModelConfig, numerics: Numerics, *,
        impl: str | Mapping[str, str] = AUTO, reduce: Reduce = ALONE.reduce, gather: Gather = ALONE.gather,
    ):  # fmt: skip
        self.choices = chosen(config, numerics, weights.split, impl)
        if weights.split.world > 1 and (reduce == ALONE.reduce or gather == ALONE.gather):
            raise ValueError(f"weights are split over {weights.split.world} ranks, which needs reduce and gather")
        self._gather = gather
        self.weights, self.config, self.numerics, self._reduce = weights, config, numerics, reduce
        self.device = weights.embedding.device
        self._freqs = frequencies(config, self.device)

    def allocate(self, num_pages: int, num_slots: int, window_pages: int | None = None) -> ModelState:
        """Caches on the device, as `LanguageModel.allocate` says."""
        with torch.device(self.device):
            return ModelState.allocate(
                self.config, self.numerics, num_pages, num_slots, window_pages=window_pages,
                with_mtp=bool(self.weights.mtp),
            )  # fmt: skip

    def describe(self) -> list[tuple[str, str, str]]:
        """(operation, implementation, why) of every operation."""
        return self.choices.rows()

    def workspace(self, tokens: int, context: int, *, chunked: bool = False) -> Workspace:
        """Plans and buffers for steps of up to `tokens` tokens of requests of up to `context` tokens."""
        pages = pages_for(context)
        split, choices = self.weights.split, self.choices
        return Workspace(self.config, self.numerics, split, choices, tokens, pages, chunked=chunked, device=self.device)

    def forward(self, inputs: StepInputs, state: ModelState, ws: Workspace) -> torch.Tensor:
        """Streams bf16 [T, n, d] behind the last layer, in a buffer of `ws`; updates `state`."""
        streams = ws.streams[: len(inputs.token_ids)]
        streams.copy_(self.embed(inputs.token_ids).unsqueeze(1).expand_as(streams))
        return self.blocks(self.weights.layers, inputs, state.layers, ws)

    def blocks(
        self, layers: Sequence[LayerWeights], inputs: StepInputs, states: Sequence[LayerState], ws: Workspace
    ) -> torch.Tensor:
        """The streams in `ws`, in place, through some layers."""
        step, hyper_connection = DeviceStep(inputs, ws, self._freqs), ws.mixing
        t = step.tokens
        streams, u, post, comb = ws.streams[:t], ws.u[:t], ws.post[:t], ws.comb[:t]
        attended, routed = ws.rounded(t, experts=False), ws.rounded(t, experts=True)
        site = device_layers.site(layers[0].attn_hyper)
        hyper_connection.pre(ws.hyper, streams, site, u, post, comb, attended, beside=ws.weighing)
        for index, layer in enumerate(layers):
            y = device_layers.attention(layer.attention, layer.ratio, u, ws, step, states[index])
            ws.ahead(*device_layers.first_of_experts(layer.moe))
            self._reduce(y)
            mixing = (y, streams, post, comb)
            site = device_layers.site(layer.ffn_hyper)
            hyper_connection.post_pre(ws.hyper, *mixing, site, streams, u, post, comb, routed, beside=ws.weighing)
            found = device_layers.experts(layer.moe, u, ws, step)
            last, alone = index + 1 == len(layers), self.weights.split.world == 1
            if not last:
                ws.ahead(*device_layers.first_of_attention(layers[index + 1].attention))
            if last or not alone:  # otherwise the hyper-connection adds up what it reads
                self._reduce(y, found)
            if last:
                hyper_connection.post(*mixing, streams)
            else:
                summed = (found if alone else y, streams, post, comb)
                site = device_layers.site(layers[index + 1].attn_hyper)
                hyper_connection.post_pre(ws.hyper, *summed, site, streams, u, post, comb, attended, beside=ws.weighing)
        ws.ahead.join()
        return streams

    def logits(self, streams: torch.Tensor, ws: Workspace, hyper: HyperWeights | None = None) -> torch.Tensor:
        """fp32 [N, V] of N rows of `forward`'s result, gathered over the ranks; `hyper` contracts them (the head's)."""
        u = torch.empty(streams.shape[0], self.config.hidden_size, dtype=torch.bfloat16, device=self.device)
        ws.mixing.head(ws.hyper, streams, device_layers.site(hyper or self.weights.head.hyper), u)
        out = torch.empty(streams.shape[0], len(self.weights.head.vocabulary), device=self.device)
        ws.vocabulary.run(u, self.weights.head.vocabulary, out)
        return self._gather(out)

    def best(self, logits: torch.Tensor, ws: Workspace, out: torch.Tensor) -> None:
        """out int64 [N]: the best id of each row of logits fp32 [N, V], of equal ones the first."""
        if ws.greedy is None:
            torch.argmax(logits, dim=-1, out=out)
        else:
            ws.greedy.run(logits, ws.no_draw[: len(logits)], out)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """bf16 [T, d] on every rank."""
        table, first = self.weights.embedding, self.weights.first_token
        if self.weights.split.world == 1:
            return table.index_select(0, token_ids)
        mine = (token_ids >= first) & (token_ids < first + len(table))
        rows = table.index_select(0, torch.where(mine, token_ids - first, 0)).masked_fill_(~mine.unsqueeze(1), 0)
        self._reduce(rows)
        return rows
