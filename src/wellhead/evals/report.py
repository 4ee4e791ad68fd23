"""Results in words and as JSON: accuracy with its 95 % Wilson interval, count and speed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from wellhead.evals.task import Result
from wellhead.evals.wilson import wilson_interval


def line(result: Result) -> str:
    """One line a task, accuracies in percent."""
    low, high = wilson_interval(result.right, result.count)
    return (
        f"{result.name:<10} {result.right / result.count:7.1%}  [{low:.1%}, {high:.1%}]  "
        f"{result.right}/{result.count} right  {_speed(result):.1f} tok/s"
    )


def as_json(results: Sequence[Result], model: str, seed: int) -> str:
    """One object: which model was asked, and for each task the counts, accuracy, interval and speed."""
    tasks = [
        {
            "task": result.name,
            "right": result.right,
            "count": result.count,
            "accuracy": result.right / result.count,
            "wilson95": wilson_interval(result.right, result.count),
            "tokens": result.tokens,
            "tokens_per_second": _speed(result),
        }
        for result in results
    ]
    return json.dumps({"model": model, "seed": seed, "tasks": tasks}, indent=2, ensure_ascii=False)


def _speed(result: Result) -> float:
    return result.tokens / result.seconds if result.seconds > 0 else 0.0
