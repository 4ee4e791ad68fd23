"""Where a step's time goes: its launches by the op that they belong to, from the profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from wellhead.ops import peer_sum, registry

SUMS, OTHERS = "sums over ranks", "torch"
RUNS = 4  # of a step at consecutive positions: one of them ends a block of four, as in the mean of many


@dataclass(frozen=True)
class Launch:
    """One kernel on the card's clock, in microseconds."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class OpTime:
    """An op's part of a step: launches, and the microseconds by which they moved its end. Parts add up to the step."""

    launches: float
    us: float


def profile(run: Callable[[], None], prepare: Callable[[int], object]) -> list[list[Launch]]:
    """The launches of each of RUNS runs, in the order in which they began; `prepare` comes in front of each. A card is
    slower once it was profiled, for the rest of the process: measure before.
    """
    found = []
    for number in range(RUNS):
        prepare(number)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiler:
            run()
            torch.cuda.synchronize()
        events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        launches = [Launch(event.name, event.time_range.start, event.time_range.end) for event in events]
        found.append(sorted(launches, key=lambda launch: launch.begin))
    if not found[0] or len({len(launches) for launches in found}) > 1:
        counted = ", ".join(str(len(launches)) for launches in found)
        raise ValueError(f"{counted} launches in {RUNS} runs of one step; the profiler lost some")
    return found


def moved(run: Sequence[Launch]) -> list[float]:
    """By how many microseconds each launch's end moves the step's end further; none beside something longer."""
    reached, found = run[0].begin, []
    for launch in run:
        found.append(max(0.0, launch.end - reached))
        reached = max(reached, launch.end)
    return found


def by_op(runs: Sequence[Sequence[Launch]]) -> dict[str, OpTime]:
    """The mean of some runs, the op with the largest part first."""
    launches: dict[str, int] = defaultdict(int)
    took: dict[str, float] = defaultdict(float)
    for run in runs:
        for launch, us in zip(run, moved(run), strict=True):
            op = op_of(launch.name)
            launches[op] += 1
            took[op] += us
    found = {op: OpTime(launches[op] / len(runs), took[op] / len(runs)) for op in launches}
    return dict(sorted(found.items(), key=lambda item: -item[1].us))


def op_of(kernel: str) -> str:
    """The op that a kernel belongs to; torch's and NCCL's have names of their own."""
    if kernel.startswith("nccl") or kernel in {build.kernel.__name__ for build in peer_sum.builds()}:
        return SUMS
    return _kernels().get(kernel, OTHERS)


@cache
def _kernels() -> Mapping[str, str]:
    """Kernel function -> op, from the SPECs; no two ops have a kernel of the same name."""
    found: dict[str, str] = {}
    for spec in registry.specs():
        for impl in spec.impls:
            for build in impl.builds() if impl.builds is not None else ():
                name = build.kernel.__name__
                if found.setdefault(name, spec.name) != spec.name:
                    raise ValueError(f"{name} is a kernel of {found[name]} and of {spec.name}; rename one")
    return found
