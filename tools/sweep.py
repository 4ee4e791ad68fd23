"""Time an op's case under other configurations: `python -m tools.sweep linear T=1,n=32768 rows=4,8 num_warps=2,4`.

Every combination of the given fields replaces those fields of what `choose_config` returns. Each is compiled by a pool
of processes first, then checked against the reference and timed by CUDA-graph replay, best first in the table. Several
sweeps may be given, separated by `--`. Needs a card; the configurations themselves are changed by hand afterwards.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WORKERS = 14


def main(arguments: list[str]) -> int:
    sweeps = [list(group) for is_bar, group in itertools.groupby(arguments, "--".__eq__) if not is_bar]
    if not sweeps or any(len(sweep) < 2 for sweep in sweeps):
        print(__doc__)
        return 2
    jobs = [(op, case, combination) for op, case, *fields in sweeps for combination in combinations(fields)]
    with multiprocessing.get_context("spawn").Pool(WORKERS, maxtasksperchild=None) as pool:
        pool.map(compile_one, jobs, chunksize=1)
    for op, case, *fields in sweeps:
        sweep(op, case, combinations(fields))
    return 0


def combinations(fields: list[str]) -> list[dict[str, Any]]:
    names = [field.split("=")[0] for field in fields]
    values = [[_value(text) for text in field.split("=")[1].split(",")] for field in fields]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def _value(text: str) -> Any:
    return int(text) if text.lstrip("-").isdigit() else text


@contextmanager
def configured(op: str, combination: dict[str, Any]) -> Iterator[None]:
    """While inside, `op` chooses its configuration with these fields replaced."""
    api: Any = importlib.import_module(f"wellhead.ops.{op}.api")
    chosen: Callable[..., Any] = api.choose_config
    api.choose_config = lambda *a, **k: dataclasses.replace(chosen(*a, **k), **combination)
    try:
        yield
    finally:
        api.choose_config = chosen


def compile_one(job: tuple[str, str, dict[str, Any]]) -> None:
    import torch

    op, name, combination = job
    spec, case = _found(op, name)
    try:
        with configured(op, combination):
            spec.impl("triton").prepare(case.make(torch.Generator("cuda").manual_seed(0), "cuda"))()
        torch.cuda.synchronize()
    except Exception:  # the sweep itself says why
        pass
    torch.cuda.empty_cache()


def sweep(op: str, name: str, tried: list[dict[str, Any]]) -> None:
    import torch

    from wellhead.dispatch.spec import REFERENCE
    from wellhead.testing.agreement import compare, results
    from wellhead.testing.bench import input_sets
    from wellhead.testing.timing import roof, times

    spec, case = _found(op, name)
    inputs = input_sets(case)
    expected = results(spec.impl(REFERENCE).prepare(inputs[0]))
    best = roof().best
    rows = []
    for combination in tried:
        label = " ".join(f"{key}={value}" for key, value in combination.items())
        try:
            with configured(op, combination):
                runs = [spec.impl("triton").prepare(drawn) for drawn in inputs]
                agreed = compare(results(runs[0]), expected, spec.error)
                took = times(runs, replays=10).median
            share = case.bytes / took / 1e3 / best
            verdict = "" if agreed else f"WRONG {agreed.outside}/{agreed.total} largest {agreed.largest:.1e}"
            rows.append((took, f"{took:9.2f} us {share:6.1%} {agreed.error:.1e} {label} {verdict}"))
        except Exception as error:
            rows.append((float("inf"), f"      failed {label}: {type(error).__name__} {str(error)[:80]!r}"))
    torch.cuda.empty_cache()
    print(f"== {op} {case.name}, roof {best:.0f} GB/s")
    for _, line in sorted(rows)[:12]:
        print(line)
    failed = sum(took == float("inf") for took, _ in rows)
    print(f"   {len(rows)} tried, {failed} failed", flush=True)


def _found(op: str, name: str) -> tuple[Any, Any]:
    from wellhead.ops import registry
    from wellhead.testing.bench import selected

    spec = registry.spec(op)
    return spec, next(selected(spec, name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
