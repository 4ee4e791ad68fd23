"""Steps as bars: each op's time beside its floor, the bytes that it must stream at the roof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FEWEST = 0.015  # of a step; smaller ops are drawn together
REST = "others"
ABREAST = 3  # steps in a row
TIME, FLOOR = "#9ecae1", "#08519c"


def draw(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Records of benchmarks/results/step.jsonl that have `ops`, a panel each. ValueError where there is none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [record for record in records if record.get("ops")]
    if not drawn:
        raise ValueError(f"{path}: none of {len(records)} records has its ops; run bench step again")
    across, down = min(ABREAST, len(drawn)), -(-len(drawn) // ABREAST)
    figure, panels = pyplot.subplots(
        down, across, squeeze=False, figsize=(1 + 4.2 * across, 0.6 + 4.0 * down), layout="constrained"
    )
    for panel, record in zip(panels.flat, drawn, strict=False):
        _panel(panel, record)
    for panel in panels.flat[len(drawn) :]:
        panel.set_visible(False)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(panel: Any, record: Mapping[str, Any]) -> None:
    """One step: the op that takes longest on top."""
    parts = _parts(record)
    names, most = list(parts), max(us for us, _ in parts.values())
    panel.barh(names, [us for us, _ in parts.values()], 0.75, color=TIME, label="moves the step's end by")
    panel.barh(names, [floor for _, floor in parts.values()], 0.3, color=FLOOR, label="its bytes at the roof")
    for place, (us, floor) in enumerate(parts.values()):
        said = f"{us:,.0f} us" + (f", floor {floor / us:.0%}" if us and floor >= 0.01 * us else "")
        panel.annotate(said, (max(us, floor), place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    panel.invert_yaxis()
    panel.set(xlim=(0, 1.6 * most), xlabel="microseconds")
    panel.set_title(_title(record), fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def _parts(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """op -> (microseconds, those of its bytes at the roof), the longest first, small ones together at the end."""
    each = {op: (of["us"], of["bytes"] / record["roof_gb_s"] / 1e3) for op, of in record["ops"].items()}
    total = sum(us for us, _ in each.values())
    found = dict(sorted(((op, of) for op, of in each.items() if of[0] >= FEWEST * total), key=lambda item: -item[1][0]))
    small = [of for op, of in each.items() if op not in found]
    rest = {REST: (sum(us for us, _ in small), sum(floor for _, floor in small))} if small else {}
    return found | rest


def _title(record: Mapping[str, Any]) -> str:
    what = f"{record['tokens']} tokens" if record["mode"] == "prefill" else f"batch {record['batch']}"
    what += f", {record['drafts']} drafts" if record.get("drafts") else ""
    card = record["gpu"].replace("NVIDIA ", "").split(" ")[0]
    return (
        f"{record['model']}, {record['layers']} layers, {record['tp']} x {card}, {record['mode']}\n"
        f"{what} at {record['context']:,}: {record['ms_mean']:.2f} ms, {record['share']:.1%} of the bound"
    )
