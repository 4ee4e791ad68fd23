"""Seeded draws that are the same on every Python version.

Only `Random.random` is promised to repeat across versions, so the draws here use nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def below(rng: Random, limit: int) -> int:
    """A whole number in [0, limit)."""
    return int(rng.random() * limit)


def drawn(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """`count` different items, in random order. Raises ValueError if there are fewer."""
    if not 0 <= count <= len(items):
        raise ValueError(f"cannot draw {count} of {len(items)} items")
    pool = list(items)
    for i in range(count):
        j = i + below(rng, len(pool) - i)
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]
