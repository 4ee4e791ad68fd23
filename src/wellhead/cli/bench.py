"""`wellhead bench OP`: an op's cases on this card, checked, then timed; or a whole step, or a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellhead.cli import bench_serve, options, ranks

if TYPE_CHECKING:
    from wellhead.testing.bench_step import Kernel

_EXAMPLES = """examples:
  wellhead bench linear moe
  wellhead bench all --jsonl benchmarks/results/ops.jsonl
  wellhead bench moe --case M=1, --arch sm120
  wellhead bench sparse_mla --list
  wellhead bench serve --url http://127.0.0.1:8000 --rate 4 --picture load.png
  wellhead bench step --layers 16 --batch 1 8 64 --context 4096 --jsonl benchmarks/results/step.jsonl
  wellhead bench step --layers 43 --tp 2 --batch 1 8 64 --eager
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="time ops on this card, or a server",
        description="Time the cases of ops by CUDA-graph replay over rotating inputs, beside the roof of the same "
        "process. A case whose result is wrong prints no speed, and the exit status is 1.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ops", nargs="+", metavar="OP", help="ops that `wellhead doctor` lists; all; step; serve")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--impl", default="triton", help="implementation to time (triton)")
    parser.add_argument(
        "--arch", choices=("native", "sm120"), default="native",
        help="sm120: run the code that SM120 would run, moved to this Hopper; native: this card's own (native)",
    )  # fmt: skip
    step = parser.add_argument_group("bench step: a whole decode step at a published model's width")
    step.add_argument("--config", default="v4-flash", help="which published configuration (v4-flash)")
    step.add_argument("--layers", type=int, default=4, help="how many of its first layers (4)")
    step.add_argument("--batch", type=int, nargs="+", default=[1], help="requests, one token each (1)")
    step.add_argument("--context", type=int, default=4096, help="position of every request (4096)")
    step.add_argument("--eager", action="store_true", help="launch by launch as well, after the CUDA graphs")
    ranks.add(parser)
    bench_serve.add_options(parser)
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append one JSON line a case to FILE")
    parser.add_argument("--list", action="store_true", help="list the cases and stop; needs no card")
    options.add_debug(parser)
    parser.set_defaults(run=run, device="cuda", everywhere=True)


def run(args: argparse.Namespace) -> int:
    if args.ops == ["step"]:
        return _run_step(args)
    if args.ops == ["serve"]:
        return bench_serve.run(args)
    from wellhead.ops import registry

    specs = registry.specs() if args.ops == ["all"] else [registry.spec(op) for op in args.ops]
    if args.list:
        for spec in specs:
            for case in spec.cases:
                print(f"{spec.name:<18} {case.name:<32} {case.bytes / 1e6:10.2f} MB {case.flops / 1e9:10.3f} GFLOP")
        return 0
    from wellhead.testing.bench import measure, needed_card, selected
    from wellhead.testing.record import append

    chosen = [(spec, case) for spec in specs for case in selected(spec, args.case, needed=len(specs) == 1)]
    needed_card()
    if args.arch == "sm120":
        from wellhead.testing.sm120_on_hopper import adopt

        adopt()
    from wellhead.testing.timing import roof

    measured = roof()
    print(f"roof: copy {measured.copy:.0f} GB/s, read {measured.read:.0f} GB/s", file=sys.stderr)
    wrong = 0
    for spec, case in chosen:
        reason = spec.impl(args.impl).supports(case.sizes)
        if reason is not None:
            print(f"{spec.name:<18} {case.name:<32} not by {args.impl}: {reason}", flush=True)
            continue
        try:
            record = measure(spec, case, args.impl, measured, args.arch)
        except ValueError as error:
            wrong += 1
            print(f"WRONG {error}", flush=True)
            continue
        print(
            f"{record['op']:<18} {record['case']:<32} {record['us_median']:9.2f} us  {record['gb_s']:8.1f} GB/s  "
            f"{record['share']:6.1%} of the roof  error {record['error']:.1e}",
            flush=True,
        )
        append(args.jsonl, record)
    return 1 if wrong else 0


def _run_step(args: argparse.Namespace) -> int:
    from wellhead.testing.bench import needed_card
    from wellhead.testing.bench_step import StepBench
    from wellhead.testing.record import append

    needed_card()
    from wellhead.model.parallel import ALONE, WHOLE
    from wellhead.testing.timing import roof

    alone = args.group is None
    group, split = (ALONE, WHOLE) if alone else (args.group, options.split(args))
    measured = roof()
    bench = StepBench(
        args.config, args.layers, args.batch, args.context, split=split, group=group, device=args.device
    )
    for mode in ("captured", "eager") if args.eager else ("captured",):
        steps = bench.steps(captured=mode == "captured")
        for batch in args.batch:
            record, kernels = bench.measure(steps, batch, measured, mode)
            if group.rank == 0:
                _tell(record, kernels)
                append(args.jsonl, record)
    return 0


def _tell(record: dict[str, Any], kernels: Sequence[Kernel]) -> None:
    """One measurement, for people."""
    print(
        f"{record['model']}, {record['layers']} layers, tp {record['tp']}, batch {record['batch']}, "
        f"context {record['context']}, {record['mode']}: {record['ms_mean']:.3f} ms "
        f"(median {record['ms_median']:.3f}), bound {record['bound_ms']:.3f} ms ({record['share']:.1%}), "
        f"{record['tok_s']:.1f} tokens/s, "
        f"{record['launches_per_layer']} launches a layer, {record['distinct_experts']} distinct experts, "
        f"{record['memory_gb']:.2f} GB in use ({record['planned_gb']:.2f} planned)"
    )
    for kernel in kernels[:24]:
        print(f"  {kernel.us:9.1f} us {kernel.launches:6.1f} x {kernel.name[:90]}")
    sys.stdout.flush()
