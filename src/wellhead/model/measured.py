"""What was measured and is believed elsewhere: the constants of `prediction`, and where each comes from.

On one H100 80GB HBM3, what concerns ranks on two H200 (torch 2.11, Triton 3.6): for other cards they are a guess.
tests/model/test_prediction.py holds them against benchmarks/results.
"""

from __future__ import annotations

from itertools import pairwise
from math import log2

ROOF = 3161.8 / 3350
"""Share of the advertised bandwidth that a streaming read reaches (roof_gb_s of step.jsonl)."""

DECODE = {(1, 4096): 0.6192, (8, 4096): 0.6853, (64, 4096): 0.7601, (1, 131072): 0.5737}
"""(requests, context) -> share of the bandwidth bound that a captured decode step of all 43 layers of V4-Flash reached
(`bench step`, whole_share of step.jsonl)."""

WAITING_LAUNCHES_A_LAYER = 20.6
"""28.7 of a captured step of 16 layers (step.jsonl) less 8.1 on branches of the graph."""

LAUNCH_SECONDS = 2.3e-6
"""A launch of almost nothing inside a graph."""

PREFILL_BYTES, PREFILL_FLOPS = 0.605, 0.159
"""A step over prompts takes its bytes at the first share of the roof, then its operations at the second share of the
tensor cores' rate: steps of 2,048 and 4,096 tokens, 16 layers (step.jsonl).
"""

REDUCE_SECONDS, REDUCE_GB_S, REDUCE_BYTES = 38.5e-6, 4.4, 512 << 10
"""What each of the two sums over ranks a layer adds to a step: a latency, and up to that many bytes at that rate
(longer ones go at the wire's). Whole V4-Flash, two H200, NCCL inside the graph, 1, 8 and 64 requests (step.jsonl): the
measured step less the bound over `decode_share`, so that what smaller products lose over two ranks is in it too.
"""


def decode_share(requests: int, context: int) -> float:
    """Share of the bound between the points of `DECODE`, by the logarithms; beyond them that of the nearest."""
    known = sorted(batch for batch, at in DECODE if at == 4096)
    requests = min(max(requests, known[0]), known[-1])
    low, high = next(pair for pair in pairwise(known) if requests <= pair[1])
    by_batch = log2(requests / low) / log2(high / low)
    by_context = min(1.0, max(0.0, log2(max(1, context) / 4096) / log2(131072 / 4096)))
    share = DECODE[low, 4096] + by_batch * (DECODE[high, 4096] - DECODE[low, 4096])
    return share * (1 + by_context * (DECODE[1, 131072] / DECODE[1, 4096] - 1))
