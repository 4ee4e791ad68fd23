"""What a load found: percentiles, goodput, JSON lines and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from wellhead.testing.load import Answered, Load

PERCENTILES = (50, 90, 95, 99)


def summary(load: Load, answered: Sequence[Answered], slo_first: float, slo_per_token: float) -> dict[str, Any]:
    """Seconds and rates of the answers that came. Goodput counts those whose first token came within `slo_first`
    seconds and the others within `slo_per_token` each on average, a second of the whole run.
    """
    good = [one for one in answered if one.error is None and one.tokens]
    seconds = max(one.at + one.last for one in good) - min(one.at for one in answered) if good else 0.0
    a_second = 1 / seconds if good else 0.0  # NaN is no JSON
    met = [one for one in good if one.first <= slo_first and not one.per_token > slo_per_token]
    found: dict[str, Any] = {
        "kind": "load", **asdict(load), "rate": load.rate if math.isfinite(load.rate) else "inf",
        "answered": len(good), "failed": len(answered) - len(good), "seconds": seconds,
        "requests_per_s": len(good) * a_second, "tokens_per_s": sum(one.tokens for one in good) * a_second,
        "prompt_tokens_per_s": sum(one.prompt_tokens for one in good) * a_second,
        "goodput_per_s": len(met) * a_second, "goodput_share": len(met) / max(1, len(answered)),
        "slo_ttft_s": slo_first, "slo_tpot_s": slo_per_token,
    }  # fmt: skip
    for name, values in _times(good).items():
        for percent in PERCENTILES:
            found[f"{name}_p{percent}_s"] = float(np.percentile(values, percent)) if values else None
    return found


def table(found: dict[str, Any]) -> str:
    """The summary for people."""

    def row(name: str, label: str) -> str:
        values = [found[f"{name}_p{percent}_s"] for percent in PERCENTILES]
        return f"  {label:<22}" + "".join("         -" if value is None else f"{value:10.3f}" for value in values)

    return "\n".join(
        [
            f"{found['answered']} answered, {found['failed']} failed in {found['seconds']:.1f} s: "
            f"{found['requests_per_s']:.2f} requests/s, {found['tokens_per_s']:.1f} tokens/s out, "
            f"{found['prompt_tokens_per_s']:.1f} in",
            f"  {'seconds':<22}" + "".join(f"{f'p{percent}':>10}" for percent in PERCENTILES),
            row("ttft", "first token"),
            row("ttft_shared", "  with a shared prefix"),
            row("tpot", "each further token"),
            row("latency", "whole answer"),
            f"goodput {found['goodput_per_s']:.2f} requests/s, {found['goodput_share']:.1%} within "
            f"{found['slo_ttft_s']:g} s to the first token and {found['slo_tpot_s']:g} s a token",
        ]
    )


def lines(answered: Sequence[Answered]) -> Iterator[dict[str, Any]]:
    """A record of each request; what is not a number is None."""
    for one in answered:
        numbers = {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in asdict(one).items()}
        yield {"kind": "request", **numbers}


def draw(path: Path, found: dict[str, Any], answered: Sequence[Answered], title: str) -> None:
    """Three panels: how many answers had their first token, and each further one, within how long; requests open."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [one for one in answered if one.error is None and one.tokens]
    figure, (first, each, over) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    times = _times(good)
    for name, label in (("ttft_shared", "shared prefix"), ("ttft_own", "own prompt"), ("ttft", "all")):
        _steps(first, times[name], label)
    _steps(each, times["tpot"], "all")
    first.set(xlabel="seconds to the first token", ylabel="share of answers", ylim=(0, 1))
    each.set(xlabel="seconds a further token", ylim=(0, 1))
    first.axvline(found["slo_ttft_s"], color="grey", linestyle=":", label="asked for")
    each.axvline(found["slo_tpot_s"], color="grey", linestyle=":")
    first.legend()
    changes = sorted([(one.at, 1) for one in good] + [(one.at + one.last, -1) for one in good])
    over.step([at for at, _ in changes], np.cumsum([change for _, change in changes]), where="post")
    over.set(xlabel="seconds since the start", ylabel="requests open", ylim=(0, None))
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _times(good: Sequence[Answered]) -> dict[str, list[float]]:
    return {
        "ttft": [one.first for one in good],
        "ttft_shared": [one.first for one in good if one.shared],
        "ttft_own": [one.first for one in good if not one.shared],
        "tpot": [one.per_token for one in good if one.tokens > 1],
        "latency": [one.last for one in good],
    }


def _steps(axes: Any, values: Sequence[float], label: str) -> None:
    if values:
        ordered = np.sort(values)
        axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", label=label)
