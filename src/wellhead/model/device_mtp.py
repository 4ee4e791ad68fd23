"""The MTP module in kernels: the computation of `mtp` over one rank's device weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from wellhead.model.device_kernels import functions_of
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_step import StepInputs
from wellhead.model.device_weights import Fp8Weight
from wellhead.model.device_workspace import Workspace
from wellhead.model.state import ModelState


class DeviceMtp:
    """The first MTP module of a model loaded with it; nothing here synchronises with the host."""

    def __init__(self, model: DeviceModel):
        if not model.weights.mtp:
            raise ValueError("the MTP module is not loaded; load the weights with with_mtp=True")
        d = model.config.hidden_size
        self._model, self._weights = model, model.weights.mtp[0]
        linear, norm_quant = (functions_of(op, model.choices.of(op)) for op in ("linear", "norm_quant"))
        self._norm, self._project = norm_quant.plan(d, model.config.rms_norm_eps), linear.plan(d, d)

    def forward(
        self, streams: torch.Tensor, next_ids: torch.Tensor, inputs: StepInputs, state: ModelState, ws: Workspace
    ) -> torch.Tensor:
        """Streams bf16 [T, n, d] behind the module, in the buffer of `ws`, from streams [T, n, d] at the inputs'
        positions (the model's or its own, in the buffer of `ws` or elsewhere) and the ids int64 [T] behind them.
        Writes the module's own window pool; padding is as in the model.
        """
        model, weights = self._model, self._weights
        t, n, d = streams.shape
        e = self._projected(model.embed(next_ids), weights.enorm, weights.e_proj)
        h = self._projected(streams.reshape(t * n, d), weights.hnorm, weights.h_proj)
        torch.add(e.unsqueeze(1), h.view(t, n, d), out=ws.streams[:t])
        return model.blocks((weights.layer,), inputs, state.mtp, ws)

    def guess(
        self, streams: torch.Tensor, last: StepInputs, state: ModelState, ws: Workspace, count: int
    ) -> torch.Tensor:
        """int64 [N, count]: the best ids behind the ids that gave streams [N, n, d], each the next one's input. `last`
        are the inputs of those N tokens alone, one a request.
        """
        found = [self._best(streams, ws)]
        for _ in range(count - 1):
            last = replace(last, positions=last.positions + 1)
            streams = self.forward(streams, found[-1], last, state, ws)
            found.append(self._best(streams, ws))
        return torch.stack(found, 1)

    def _best(self, streams: torch.Tensor, ws: Workspace) -> torch.Tensor:
        best = torch.zeros(len(streams), dtype=torch.int64, device=streams.device)
        self._model.best(self._model.logits(streams, ws, self._weights.head_hyper), ws, best)
        return best

    def _projected(self, x: torch.Tensor, norm: torch.Tensor, weight: Fp8Weight) -> torch.Tensor:
        """W norm(x), bf16 [rows, d]."""
        rows, d = x.shape
        codes = torch.empty(rows, d, dtype=torch.float8_e4m3fn, device=x.device)
        scale = torch.empty(rows, d // 128, dtype=torch.uint8, device=x.device)
        self._norm.run(x, norm, codes, scale)
        out = torch.empty_like(x)
        self._project.run(codes, scale, weight.weight, weight.scale, out)
        return out
