"""Steps as stacked bars: each op's part of the time, beside the bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FEWEST = 0.015  # of a bar; smaller parts are drawn together
REST = "others"


def draw(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Records of benchmarks/results/step.jsonl that have `ops`, one bar each; a line says where the bound lies.
    ValueError where there is none.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [record for record in records if record.get("ops")]
    if not drawn:
        raise ValueError(f"{path}: none of {len(records)} records has its ops; run bench step again")
    parts = [_parts(record) for record in drawn]
    names = sorted({name for part in parts for name in part}, key=lambda n: -sum(part.get(n, 0.0) for part in parts))
    colours = pyplot.get_cmap("tab20")
    figure, axes = pyplot.subplots(figsize=(2.5 + 1.4 * len(drawn), 5.5), layout="constrained")
    below = [0.0] * len(drawn)
    for number, name in enumerate(names):
        heights = [part.get(name, 0.0) for part in parts]
        axes.bar(range(len(drawn)), heights, 0.7, below, label=name, color=colours(number % 20))
        below = [low + height for low, height in zip(below, heights, strict=True)]
    for place, record in enumerate(drawn):
        label = "bandwidth bound" if place == 0 else None
        axes.plot([place - 0.4, place + 0.4], [100 * record["share"]] * 2, color="black", linewidth=2, label=label)
    axes.set_xticks(range(len(drawn)), [_title(record) for record in drawn], fontsize=8)
    axes.set(ylabel="% of the step", ylim=(0, 100))
    axes.legend(
        *(reversed(side) for side in axes.get_legend_handles_labels()), loc="center left", bbox_to_anchor=(1, 0.5)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _parts(record: Mapping[str, Any]) -> dict[str, float]:
    """Per cent of the step by op."""
    times = {op: of["us"] for op, of in record["ops"].items()}
    total = sum(times.values())
    found = {op: 100 * us / total for op, us in times.items() if us >= FEWEST * total}
    return found | {REST: 100 - sum(found.values())}


def _title(record: Mapping[str, Any]) -> str:
    what = f"{record['tokens']} tokens" if record["mode"] == "prefill" else f"batch {record['batch']}"
    what += f", {record['drafts']} drafts" if record.get("drafts") else ""
    card = record["gpu"].replace("NVIDIA ", "").split(" ")[0]
    return (
        f"{record['model']}\n{record['layers']} layers\n{record['tp']} x {card}\n{what}\nat {record['context']:,}\n"
        f"{record['mode']}\n{record['ms_mean']:.2f} ms"
    )
