"""Drafts and the rule that accepts them: speculative decoding (Leviathan et al. 2023), exact for greedy requests and
distribution-preserving for sampled ones, however good or bad the drafts are.

A draft x drawn from q is kept with probability min(1, p(x) / q(x)), where p is what the model itself would draw from:
softmax(logits / temperature) restricted by top-k and top-p. Refused, its place is drawn from max(0, p - q), scaled to
one, and the drafts behind it are dropped. When all are kept, one more token comes from the model's last row. Of a
draft that nobody drew, q is one at x: then the model's own draw decides, and the tokens are those drawn without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from wellhead.model.draft_room import draft_room
from wellhead.ops.compressor import reference as compressor
from wellhead.ops.sampling import reference as sampling

if TYPE_CHECKING:
    from wellhead.engine.request import Request
    from wellhead.engine.sampling_params import SamplingParams

MOST_TOKENS = compressor.MOST_DRAFTS


@dataclass(frozen=True, eq=False)
class Draft:
    """A guessed token and the probabilities fp64 [V] it was drawn from; None when nothing was drawn."""

    token: int
    drawn_from: torch.Tensor | None = None


def guess(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator) -> Draft:
    """A draft from the drafting layer's logits [V], chosen as the request chooses its tokens."""
    if params.temperature == 0:
        return Draft(int(logits.argmax()))
    probability = restricted(logits, params)
    return Draft(_draw(probability, generator), probability)


def accept(
    logits: torch.Tensor, drafts: Sequence[Draft], params: SamplingParams, generator: torch.Generator
) -> list[int]:
    """The tokens that the model's logits [len(drafts) + 1, V] give: the drafts accepted, then one of its own."""
    if params.temperature == 0:
        return accept_best(logits.argmax(-1).tolist(), drafts)
    tokens: list[int] = []
    for row, draft in zip(logits, drafts, strict=False):
        tokens.append(_token(row, draft, params, generator))
        if tokens[-1] != draft.token:
            return tokens
    last = sampling.sample(logits[len(drafts)], params.temperature, params.top_k, params.top_p, generator)
    return [*tokens, last]


def accept_best(best: Sequence[int], drafts: Sequence[Draft]) -> list[int]:
    """`accept` of a greedy request, from the best ids [len(drafts) + 1]."""
    right = 0
    while right < len(drafts) and drafts[right].token == best[right]:
        right += 1
    return list(best[: right + 1])


def restricted(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """fp64 [V], the probabilities with which `sampling.sample` draws each token; temperature above 0."""
    ids, probability = sampling.nucleus(logits, params.temperature, params.top_k, params.top_p)
    spread = torch.zeros_like(logits, dtype=torch.float64)
    spread[ids] = probability / probability.sum()
    return spread


def draft_count(request: Request, known: int, most: int) -> int:
    """How many drafts, at most `most`, to make for a request when it has `known` tokens, the newest not computed.

    No more than its answer has room for, where `draft_room` allows them. A function of `known` alone, so that a
    preempted request draws what it would have drawn. None where the request adjusts its logits, since it does so for
    the tokens it has.
    """
    return 0 if request.adjust is not None else draft_room(known - 1, request.last_draft, most)


def _token(logits: torch.Tensor, draft: Draft, params: SamplingParams, generator: torch.Generator) -> int:
    """The draft's token if it is accepted, else another; temperature above 0."""
    if draft.drawn_from is None:
        return sampling.sample(logits, params.temperature, params.top_k, params.top_p, generator)
    p, q = restricted(logits, params), draft.drawn_from
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    if uniform * float(q[draft.token]) < float(p[draft.token]):
        return draft.token
    return _draw((p - q).clamp_min(0), generator)


def _draw(weights: torch.Tensor, generator: torch.Generator) -> int:
    """An id with a probability in proportion to its weight, by one uniform number; never one of weight 0."""
    ids = weights.nonzero().squeeze(-1)
    cumulative = weights[ids].cumsum(-1)
    draw = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    place = int(torch.searchsorted(cumulative, draw, right=True))
    return int(ids[min(place, ids.shape[0] - 1)])
