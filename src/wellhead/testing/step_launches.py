"""A layer's launches one behind the other: which of them the step waits for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from wellhead.testing.step_profile import Launch, moved
from wellhead.testing.step_whole import SITE, Kind

Moved = tuple[str, float, float, float]  # name; microseconds from the layer's begin, of the launch, of the end moved


def layers(run: Sequence[Launch]) -> list[list[Moved]]:
    """The launches of each layer, which begins with its first hyper-connection."""
    ends = moved(run)
    sites = [place for place, launch in enumerate(run) if launch.name == SITE][::2]
    return [
        [(run[at].name, run[at].begin - run[first].begin, run[at].end - run[at].begin, ends[at])
         for at in range(first, behind)]
        for first, behind in pairwise(sites)
    ]  # fmt: skip


def by_kind(runs: Sequence[Sequence[Launch]], kinds: Sequence[Kind]) -> dict[str, list[Moved]]:
    """Each kind of layer, by what tells it from others: the mean over those of its layers whose launches began in the
    order that is the most frequent. What runs on two streams begins in either order. ValueError for launches of another
    number of layers.
    """
    seen: dict[str, list[list[Moved]]] = defaultdict(list)
    for run in runs:
        if len(each := layers(run)) != len(kinds):
            raise ValueError(f"{len(each)} layers began, expected {len(kinds)}")
        for (ratio, hashed), own in zip(kinds, each, strict=True):
            seen[f"ratio {ratio}, experts by {'token id' if hashed else 'score'}"].append(own)
    found = {}
    for kind, those in seen.items():
        (names, _), *_ = Counter(tuple(name for name, *_ in own) for own in those).most_common(1)
        alike = [[times for _, *times in own] for own in those if tuple(name for name, *_ in own) == names]
        found[kind] = [_mean(name, [own[place] for own in alike]) for place, name in enumerate(names)]
    return found


def _mean(name: str, each: Sequence[Sequence[float]]) -> Moved:
    begin, took, end = (round(fmean(values), 2) for values in zip(*each, strict=True))
    return name, begin, took, end


def tell(found: Mapping[str, Sequence[Any]]) -> str:
    """For people: a line a launch."""
    lines = []
    for kind, own in found.items():
        lines.append(f"  {kind}: {sum(end for *_, end in own):.1f} us in {len(own)} launches")
        lines.append(f"    {'launch':<32} {'begins':>8} {'takes':>8}  moves the end by")
        lines += [f"    {name[:32]:<32} {begin:8.1f} {took:8.1f} {end:8.1f}" for name, begin, took, end in own]
    return "\n".join(lines)
