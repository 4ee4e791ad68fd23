"""Whole steps under several configurations, in turns of one process: two processes differ by more than most gains.

    python -m tools.step_variants --layers 16 "linear rows=4" "linear rows=4; sparse_mla parts=16" variants.py

A variant is `OP FIELD=VALUE ...`, several joined by `;`, which replaces those fields of what the op's `choose_config`
returns; or a Python file whose `variant()` is a context manager, inside which the step is captured. Every variant is
captured once, checked against the first step's logits, then replayed in turns. Needs a card.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tools.sweep import combinations, configured
from wellhead.ops import registry

AS_IT_IS = "as it is"


def of(words: str) -> AbstractContextManager[None]:
    """What the step is captured inside. ValueError for words that are neither form."""
    path = Path(words)
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"{words}: no such file; expected a Python file with a context manager `variant`")
        found = runpy.run_path(str(path)).get("variant")
        if found is None:
            raise ValueError(f"{words} has no `variant`; expected a context manager of that name")
        return found()
    replaced = [_fields(part) for part in words.split(";")]
    return _together(replaced)


def _fields(words: str) -> tuple[str, dict[str, Any]]:
    """An op and the fields that are replaced."""
    op, *fields = words.split() or [""]
    if not fields or any("=" not in field or "," in field for field in fields):
        raise ValueError(f"{words.strip()!r}: expected OP FIELD=VALUE ..., or a Python file")
    found, known_op = combinations(fields)[0], registry.spec(op).name
    config = getattr(importlib.import_module(f"wellhead.ops.{known_op}.api"), "Config", None)
    if config is None:
        raise ValueError(f"{words.strip()!r}: {op} chooses no configuration by that name; write a Python file")
    known = {field.name for field in dataclasses.fields(config)}
    for name in found.keys() - known:
        raise ValueError(f"{words.strip()!r}: {op} has no field {name}, expected {', '.join(sorted(known))}")
    return op, found


@contextmanager
def _together(replaced: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[None]:
    with ExitStack() as all_of_them:
        for op, fields in replaced:
            all_of_them.enter_context(configured(op, fields))
        yield


def table(times: dict[str, list[float]], errors: dict[str, float]) -> list[str]:
    """A line a variant: the median of its milliseconds, the middle half, the change, its logits' largest difference."""
    base = median(times[AS_IT_IS])
    lines = [f"{'ms':>8} {'middle half':>17} {'change':>8} {'logits':>8}"]
    for name, took in times.items():
        low, middle, high = quantiles(took, n=4, method="inclusive")
        lines.append(f"{middle:8.4f} {low:8.4f} {high:8.4f} {middle / base - 1:+8.2%} {errors[name]:8.1e}  {name}")
    return lines


def arguments(words: Sequence[str]) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tools.step_variants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="+", metavar="VARIANT", help="OP FIELD=VALUE ..., or FILE.py")
    parser.add_argument("--config", default="v4-flash", help="which published configuration (v4-flash)")
    parser.add_argument("--layers", type=int, default=16, help="its first layers (16)")
    parser.add_argument("--batch", type=int, default=1, help="decoding requests (1)")
    parser.add_argument("--context", type=int, default=4096, help="position of every request (4096)")
    parser.add_argument("--alone", type=int, default=1, metavar="N", help="one rank of N on one card, without sums (1)")
    parser.add_argument("--rounds", type=int, default=160, help="steps of each variant (160)")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    given = arguments(words)
    wanted = {name: of(name) for name in given.variants}
    from wellhead.model.split import Split
    from wellhead.testing.bench_step import POSITIONS, OneRank, StepBench

    split, group = Split(0, given.alone), OneRank(given.alone)
    bench = StepBench(given.config, given.layers, [given.batch], given.context, split=split, group=group)
    steps: dict[str, Any] = {AS_IT_IS: bench.steps(captured=True)}
    first = bench.once(steps[AS_IT_IS], given.batch, 0)[1].clone()
    errors = {AS_IT_IS: 0.0}
    for name, inside in wanted.items():
        with inside:
            bench.plan(bench.model.weights)
            steps[name] = bench.steps(captured=True)
        logits = bench.once(steps[name], given.batch, 0)[1]
        errors[name] = float((logits - first).abs().max() / first.abs().max())
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(given.rounds):
        for name, of_it in steps.items():
            times[name].append(bench.once(of_it, given.batch, number % POSITIONS)[0])
    print("\n".join(table(times, errors)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"step_variants: {error}")
