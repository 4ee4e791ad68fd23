"""A step that was measured: its record, its parts by op, and what a whole model would take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wellhead.testing.step_launches import by_kind
from wellhead.testing.step_profile import Launch, by_op, profile
from wellhead.testing.step_whole import Kind, whole_step


@dataclass(frozen=True)
class Whole:
    """The published model that a step of its first layers stands for."""

    measured: Sequence[Kind]  # the layers that are run
    layers: Sequence[Kind]  # all of them
    bytes: int  # that a step of all of them streams at least


@dataclass(frozen=True)
class Measured:
    """A step that was measured: its record with the keys of benchmarks/results/step.jsonl, and what runs it again."""

    record: dict[str, Any]
    bytes: Mapping[str, int]  # least bytes by op
    run: Callable[[], None]
    prepare: Callable[[int], object]  # the inputs of one of several runs
    whole: Whole | None = None

    def profiled(self, *, launches: Sequence[Kind] = ()) -> dict[str, Any]:
        """The record with each op's part: microseconds, launches, bytes and their share of the roof; and, of a decode,
        what all layers of the published model take and stream. With the kinds of the layers, also `timeline`, each
        kind's launches one behind the other.
        """
        runs = profile(self.run, self.prepare)
        ops = by_op(runs)
        parts = {
            op: {
                "us": round(of.us, 1), "launches": round(of.launches, 1), "bytes": self.bytes.get(op, 0),
                "share": round(self.bytes.get(op, 0) / of.us / 1e3 / self.record["roof_gb_s"], 3) if of.us else None,
            }
            for op, of in ops.items()
        }  # fmt: skip
        a_layer = sum(of.launches for of in ops.values()) / self.record["layers"]
        timeline = {"timeline": by_kind(runs, launches)} if launches else {}
        return {
            **self.record, "launches_per_layer": round(a_layer, 1), **self._of_whole(runs), "ops": parts, **timeline
        }  # fmt: skip

    def _of_whole(self, runs: Sequence[Sequence[Launch]]) -> dict[str, Any]:
        if self.whole is None:
            return {}
        took = whole_step(runs, self.record["ms_mean"], self.whole.measured, self.whole.layers)
        bound = self.whole.bytes / self.record["roof_gb_s"] / 1e6
        return {
            "whole_layers": len(self.whole.layers), "whole_ms": round(took, 4), "whole_bytes": self.whole.bytes,
            "whole_bound_ms": round(bound, 4), "whole_share": round(bound / took, 4),
        }  # fmt: skip
