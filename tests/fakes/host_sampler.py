"""A `DeviceSampler` on the CPU whose draws are those of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from wellhead.engine.request import Request
from wellhead.engine.scores import Scores
from wellhead.ops.sampling.reference import sample


class HostSampler:
    """Draws with the requests' own generators, once a token, as `engine.choice` does without a sampler."""

    def takes(self, request: Request) -> bool:
        return request.params.temperature > 0 and request.adjust is None

    def draw(self, scores: Scores, spans: Mapping[Request, Sequence[int]]) -> torch.Tensor:
        chosen = scores.best.clone()
        for request, (token,) in spans.items():
            params, (logits,) = request.params, scores.read([token])
            chosen[scores.at[token]] = sample(
                logits, params.temperature, params.top_k, params.top_p, request.generator
            )
        return chosen
