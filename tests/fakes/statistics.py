"""How far counts are from what was expected."""

from __future__ import annotations

import torch

from wellhead.engine import speculative
from wellhead.engine.llm import LLM
from wellhead.engine.sampling_params import SamplingParams


def chi_square(counts: torch.Tensor, probability: torch.Tensor) -> float:
    """As deviations of a normal distribution (Wilson and Hilferty 1931); nothing may be counted where nothing is
    expected.
    """
    expected = probability * counts.sum()
    assert not counts[expected == 0].any()
    kept = expected > 0
    freedom = max(1, int(kept.sum()) - 1)
    statistic = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5


def places(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> torch.Tensor:
    """Where each sampled token lies in its distribution, likeliest first: even over (0, 1) if it was drawn from it."""
    found, generator = [], torch.Generator().manual_seed(9)
    for ids, own, done in zip(prompts, params, llm.generate(prompts, params), strict=True):
        logits = llm.logits(ids + done.token_ids[:-1])[len(ids) - 1 :]
        for row, token in zip(logits, done.token_ids, strict=True):
            p = speculative.restricted(row, own)
            order = p.argsort(descending=True)
            rank = int((order == token).nonzero())
            found.append(float(p[order[:rank]].sum() + p[token] * torch.rand((), generator=generator)))
    return torch.tensor(found)
