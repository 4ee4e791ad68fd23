"""The next token from its logits: temperature, top-k, nucleus (Holtzman et al. 2020), one uniform draw."""

from __future__ import annotations

import torch


def sample(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> int:
    """Token id drawn from softmax(logits / temperature) restricted to the top_k likeliest and to the nucleus top_p.

    logits [V]; temperature 0 takes the argmax (first of equals); top_k 0 and top_p 1 restrict nothing. The nucleus is
    the shortest likeliest-first run whose probability reaches top_p, at least one token. Exactly one uniform number is
    taken from `generator` for a token, so a request's draws do not depend on the batch it runs in.
    """
    if temperature == 0:
        return int(logits.argmax())
    ids, probability = nucleus(logits, temperature, top_k, top_p)
    cumulative = probability.cumsum(-1)
    draw = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    rank = int(torch.searchsorted(cumulative, draw, right=True))
    return int(ids[min(rank, ids.shape[0] - 1)])


def nucleus(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that `sample` can draw, likeliest first, and their probabilities fp64, which sum to 1 before the cut at
    top_p; temperature above 0.
    """
    order = torch.sort(logits.double(), descending=True, stable=True)
    # less the largest, so that no temperature divides to infinity
    probability = torch.softmax((order.values - order.values[0])[: top_k or None] / temperature, -1)
    if top_p < 1:
        before = probability.cumsum(-1) - probability
        probability = probability[before < top_p]
    return order.indices[: probability.shape[0]], probability


def logprobs(logits: torch.Tensor, chosen: int, top: int) -> dict[int, float]:
    """Natural-log probabilities of the `top` likeliest tokens and of the chosen one, temperature 1."""
    scores = torch.log_softmax(logits.double(), -1)
    ids = torch.topk(scores, min(top, scores.shape[0])).indices.tolist()
    return {i: float(scores[i]) for i in dict.fromkeys([chosen, *ids])}
