"""The next token from its logits: temperature, top-k, nucleus (Holtzman et al. 2020), one uniform draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch

HEAD = 4096  # tokens among which a nucleus is looked for first
LOGPROB_ROWS = 2  # in fp64 at a time, a megabyte each of V4's vocabulary


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
    """Ids that `sample` can draw and their probabilities fp64, which sum to 1 before the cut at top_p; temperature
    above 0. Likeliest first where something is restricted.
    """
    wide = logits.double()
    weight = torch.exp((wide - wide.max()) / temperature)  # no temperature divides to infinity
    if not top_k and top_p == 1:
        ids = weight.nonzero().squeeze(-1)
        return ids, weight[ids] / weight.sum()
    ids = likeliest(logits, top_k or HEAD)
    if top_k:
        ids = ids[:top_k]
        probability = weight[ids] / weight[ids].sum()
    else:
        if weight[ids].sum() < top_p * weight.sum():  # a flat row: all of it
            ids = likeliest(logits, len(logits))
        probability = weight[ids] / weight.sum()
    if top_p < 1:
        probability = probability[probability.cumsum(-1) - probability < top_p]
    return ids[: len(probability)], probability


def likeliest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The ids of the `count` largest of logits [V] and of all that equal the last of them, largest first, equal ones in
    order; none of -inf. A sort of what reaches a threshold: that of a vocabulary takes ten times as long.
    """
    least = torch.topk(logits, min(count, len(logits))).values[-1].clamp_min(torch.finfo(logits.dtype).min)
    ids = (logits >= least).nonzero().squeeze(-1)
    return ids[torch.sort(logits[ids], descending=True, stable=True).indices]


def logprobs(logits: torch.Tensor, chosen: Sequence[int], top: Sequence[int]) -> list[dict[int, float]]:
    """Of each row of logits [N, V] the natural-log probabilities, temperature 1, of the chosen token and of the `top`
    likeliest ones, in this order; computed in fp64 where the logits are, read by the host once.
    """
    most, parts = min(max(top), logits.shape[1]), []
    for low in range(0, len(logits), LOGPROB_ROWS):
        scores = torch.log_softmax(logits[low : low + LOGPROB_ROWS].double(), -1)
        own = torch.tensor(chosen[low : low + LOGPROB_ROWS], device=logits.device).unsqueeze(1)
        best = torch.topk(scores, most)
        parts.append((torch.cat((own, best.indices), 1), torch.cat((scores.gather(1, own), best.values), 1)))
    ids, values = (torch.cat(column).tolist() for column in zip(*parts, strict=True))
    return [
        dict(zip(own[: 1 + count], value[: 1 + count], strict=True))
        for own, value, count in zip(ids, values, top, strict=True)
    ]
