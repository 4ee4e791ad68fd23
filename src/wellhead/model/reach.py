"""Which steps there are beside the longest: how long requests may be, and how many tokens of prompts.

As a step's launches are planned for the longest request, short ones want steps of their own.

A step planned for a million tokens takes one request of 4,096 tokens 7 % longer than a step planned for those (H100,
docs/log.md): the choice among index logits is three launches instead of one, attention has more parts to merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

REACHES = (1 << 13, 1 << 15, 1 << 18)  # tokens; up to the second a row of index logits is one program's
CHUNK_TOKENS = 2048  # of a step at most, where nothing is said: 512 read nearly all weights as well (docs/log.md)
LEAST_PROMPT = 16  # tokens of the shortest step over prompts
Step = TypeVar("Step")


def reaches(context: int) -> list[int]:
    """Numbers of tokens that steps are planned for where requests have up to `context`, the longest last."""
    return [*(reach for reach in REACHES if 2 * reach <= context), context]


def prompt_reaches(context: int) -> list[int]:
    """The same of steps over prompts: what the shortest spares is little beside several tokens."""
    return [reach for reach in reaches(context) if reach == context or reach > REACHES[0]]


def prompt_sizes(chunk_tokens: int) -> list[int]:
    """Numbers of tokens of steps over prompts, `chunk_tokens` the last: what is between is filled up. Beyond the first
    of them powers of two from 64 on: what fills up reads no expert and attends nothing.
    """
    powers = (1 << power for power in range(6, chunk_tokens.bit_length()))
    return sorted({min(LEAST_PROMPT, chunk_tokens), *powers, chunk_tokens})


def fitting(steps: Mapping[tuple[int, int], Step], requests: int, pages: int) -> Step:
    """Of steps by (requests, pages of the longest one) the smallest that holds those; ValueError where none does."""
    found = [key for key in steps if key[0] >= requests and key[1] >= pages]
    if not found:
        most, longest = max(steps)
        raise ValueError(
            f"{requests} requests of up to {pages} pages in a decode step; the ladder ends at {most} of {longest}"
        )
    return steps[min(found)]
