"""How steps shrink with the ranks, from records of benchmarks/results/step.jsonl:

python -m wellhead.testing.scaling_picture FILE.jsonl PICTURE
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellhead.model.published import published_config


@dataclass(frozen=True)
class Point:
    """One captured decode of all layers; `scaled`: made of the kinds of layers that were run (`step_whole`)."""

    tp: int
    ms: float
    tok_s: float
    share: float
    scaled: bool


def lines_of(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[Point]]:
    """(model, batch) -> its points by ranks, of equal ones the one with most layers, then the last. Steps with drafts,
    of one rank alone, planned for more than their context, and of fewer layers that do not say what all would take,
    have none.
    """
    found: dict[tuple[str, int, int], Mapping[str, Any]] = {}
    for record in records:
        whole = record["layers"] == published_config(record["model"])["num_hidden_layers"] or "whole_ms" in record
        other = record.get("drafts") or record.get("alone") or record.get("limit", 0) > record["context"]
        if record.get("mode") != "captured" or other or not whole:
            continue
        key = record["model"], record["batch"], record["tp"]
        if key not in found or record["layers"] >= found[key]["layers"]:
            found[key] = record
    lines: dict[tuple[str, int], list[Point]] = {}
    for (model, batch, tp), record in sorted(found.items()):
        scaled = "whole_ms" in record
        ms, share = (record["whole_ms"], record["whole_share"]) if scaled else (record["ms_mean"], record["share"])
        point = Point(tp, ms, 1e3 * batch / ms, share, scaled)
        lines.setdefault((model, batch), []).append(point)
    return lines


def draw(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Three panels over the ranks: ms a step, tokens/s, share of the bandwidth bound; scaled points are hollow.
    ValueError where no record is a captured decode of all layers.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = lines_of(records)
    if not lines:
        raise ValueError(f"{path}: none of {len(records)} records is a captured decode of all layers; run bench step")
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    worlds = sorted({point.tp for points in lines.values() for point in points})
    for number, ((model, batch), points) in enumerate(lines.items()):
        colour, ranks = f"C{number}", [point.tp for point in points]
        figures = [[p.ms for p in points], [p.tok_s for p in points], [100 * p.share for p in points]]
        for panel, values in zip(axes, figures, strict=True):
            panel.plot(ranks, values, color=colour, label=f"{model}, batch {batch}")
            for point, value in zip(points, values, strict=True):
                panel.plot(point.tp, value, "o", color=colour, markerfacecolor="white" if point.scaled else colour)
    for panel, name in zip(axes, ("ms a step", "tokens/s, summed", "% of the bandwidth bound"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_xticks(worlds, [str(world) for world in worlds])
        panel.set(xlabel="ranks (hollow: from fewer layers)", ylabel=name)
        panel.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    axes[2].set_ylim(0, 100)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(words: Sequence[str]) -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args(words)
    draw(given.picture, [json.loads(line) for line in given.records.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main(sys.argv[1:])
