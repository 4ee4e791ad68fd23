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
    order = torch.sort(logits.double() / temperature, descending=True, stable=True)
    probability = torch.softmax(order.values[: top_k or None], -1)
    if top_p < 1:
        before = probability.cumsum(-1) - probability
        probability = probability[before < top_p]
    cumulative = probability.cumsum(-1)
    draw = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    rank = int(torch.searchsorted(cumulative, draw, right=True))
    return int(order.indices[min(rank, cumulative.shape[0] - 1)])


def logprobs(logits: torch.Tensor, chosen: int, top: int) -> dict[int, float]:
    """Natural-log probabilities of the `top` likeliest tokens and of the chosen one, temperature 1."""
    scores = torch.log_softmax(logits.double(), -1)
    ids = torch.topk(scores, min(top, scores.shape[0])).indices.tolist()
    return {i: float(scores[i]) for i in dict.fromkeys([chosen, *ids])}
