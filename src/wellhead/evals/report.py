"""Results in words and as JSON: accuracy with its 95 % Wilson interval, drafts, speed, and what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from wellhead.evals.task import Result
from wellhead.evals.wilson import wilson_interval
from wellhead.testing.ties import Tally


def line(result: Result) -> str:
    """One line a task, accuracies in percent; where drafts were made, how many tokens they saved a step."""
    low, high = wilson_interval(result.right, result.count)
    text = (
        f"{result.name:<10} {result.right / result.count:7.1%}  [{low:.1%}, {high:.1%}]  "
        f"{result.right}/{result.count} right"
    )
    steps, drafted, accepted = result.drafts
    if drafted:
        text += f"  {accepted / steps:.2f} drafts accepted a step, {accepted / drafted:.1%} of all"
    return text


def speed_line(results: Sequence[Result], seconds: float) -> str:
    """All tasks together."""
    tokens = sum(result.tokens for result in results)
    return f"{tokens} tokens in {seconds:.1f} s, {_speed(results, seconds):.1f} tok/s"


def difference_lines(way: str, results: Sequence[Result], tallies: Sequence[Tally]) -> list[str]:
    """Of each task how many answers agree, tie and differ; then every tie and difference with its margin."""
    lines = [
        f"{result.name:<10} against {way}: {tally.agreed} agree, {len(tally.ties)} tie, {len(tally.wrong)} differ"
        for result, tally in zip(results, tallies, strict=True)
    ]
    return lines + [text for tally in tallies for text in tally.ties + tally.wrong]


def as_json(
    results: Sequence[Result], seconds: float, model: str, seed: int, against: tuple[str, Sequence[Tally]] | None = None
) -> str:
    """One object: which model was asked, how fast it was, and for each task counts, accuracy, interval, drafts, and
    where it was run a second way the answers that agree, tie and differ.
    """
    tasks = []
    for number, result in enumerate(results):
        steps, drafted, accepted = result.drafts
        task: dict[str, Any] = {
            "task": result.name,
            "right": result.right,
            "count": result.count,
            "accuracy": result.right / result.count,
            "wilson95": wilson_interval(result.right, result.count),
            "tokens": result.tokens,
        }
        if drafted:
            task |= {"draft_steps": steps, "drafted_tokens": drafted, "accepted_tokens": accepted}
        if against is not None:
            tally = against[1][number]
            task |= {"agree": tally.agreed, "ties": tally.ties, "differ": tally.wrong}
        tasks.append(task)
    whole: dict[str, Any] = {"model": model, "seed": seed, "tokens_per_second": _speed(results, seconds)}
    if against is not None:
        whole["against"] = against[0]
    return json.dumps(whole | {"tasks": tasks}, indent=2, ensure_ascii=False)


def _speed(results: Sequence[Result], seconds: float) -> float:
    return sum(result.tokens for result in results) / seconds if seconds > 0 else 0.0
