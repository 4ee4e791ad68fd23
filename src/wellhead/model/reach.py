"""How long a request may be for a captured decode: as its launches are planned for the longest one, short ones want
steps of their own.

A step planned for a million tokens takes one request of 4,096 tokens 7 % longer than a step planned for those (H100,
docs/log.md): the choice among index logits is three launches instead of one, attention has more parts to merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

REACHES = (1 << 13, 1 << 15, 1 << 18)  # tokens; up to the second a row of index logits is one program's
Step = TypeVar("Step")


def reaches(context: int) -> list[int]:
    """Numbers of tokens that decodes are planned for where requests have up to `context`, the longest last."""
    return [*(reach for reach in REACHES if 2 * reach <= context), context]


def fitting(steps: Mapping[tuple[int, int], Step], requests: int, pages: int) -> Step:
    """Of steps by (requests, pages of the longest one) the smallest that holds those; ValueError where none does."""
    found = [key for key in steps if key[0] >= requests and key[1] >= pages]
    if not found:
        most, longest = max(steps)
        raise ValueError(
            f"{requests} requests of up to {pages} pages in a decode step; the ladder ends at {most} of {longest}"
        )
    return steps[min(found)]
