"""`wellhead bench OP`: an op's cases on this card, checked, then timed; or a whole step, or a server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wellhead.cli import bench_serve, bench_step, options, ranks
from wellhead.cli.modes import Modes

_OPS, _LIST, _STEP, _SERVE = "bench OP", "bench OP --list", "bench step", "bench serve"

_EXAMPLES = """examples:
  wellhead bench linear moe
  wellhead bench all --jsonl benchmarks/results/ops.jsonl
  wellhead bench moe --case M=1, --arch sm120
  wellhead bench sparse_mla --list
  wellhead bench serve --url http://127.0.0.1:8000 --rate 4 --picture load.png
  wellhead bench step --layers 16 --batch 1 8 64 --context 4096 --jsonl benchmarks/results/step.jsonl
  wellhead bench step --layers 43 --tp 2 --batch 1 8 64 --eager
  wellhead bench step --layers 16 --batch 1 --drafts 3
  wellhead bench step --layers 16 --batch 1 --limit 1048576
  wellhead bench step --layers 8 --alone 2 --launches
  wellhead bench step --layers 12 --batch 1 64 --prefill 512 4096 --picture step.png
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
    modes = Modes(parser, _mode)
    with modes.only(_OPS, _LIST):
        parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    with modes.only(_OPS):
        parser.add_argument("--impl", default="triton", help="implementation to time (triton)")
        parser.add_argument(
            "--arch", choices=("native", "sm120", "sm80"), default="native",
            help="sm120, sm80: run the code that those cards would run, moved to this Hopper; native: its own (native)",
        )  # fmt: skip
    with modes.only(_STEP):
        bench_step.add_options(parser)
        ranks.add(parser)
    with modes.only(_SERVE):
        load = bench_serve.add_options(parser)
    with modes.only(_STEP, _SERVE):
        load.add_argument("--picture", type=Path, metavar="FILE", help="draw it (.png, .svg or .pdf)")
    with modes.only(_OPS, _STEP, _SERVE):
        parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append one JSON line a case to FILE")
    with modes.only(_LIST):
        parser.add_argument("--list", action="store_true", help="list the cases and stop; needs no card")
    options.add_debug(parser)
    parser.set_defaults(run=run, device="cuda", everywhere=True)


def _mode(args: argparse.Namespace) -> str:
    named = {"step": _STEP, "serve": _SERVE}.get(args.ops[0]) if len(args.ops) == 1 else None
    return named or (_LIST if args.list else _OPS)


def run(args: argparse.Namespace) -> int:
    if args.ops == ["step"]:
        return bench_step.run(args)
    if args.ops == ["serve"]:
        return bench_serve.run(args)
    alone = [name for name in ("all", "step", "serve") if name in args.ops and len(args.ops) > 1]
    if alone:
        raise ValueError(f"bench {' '.join(args.ops)}: {alone[0]} stands alone; run it in a command of its own")
    from wellhead.ops import registry

    specs = registry.specs() if args.ops == ["all"] else [registry.spec(op) for op in args.ops]
    if args.list:
        for spec in specs:
            for case in (case for case in spec.cases if args.case in case.name):
                print(f"{spec.name:<18} {case.name:<32} {case.bytes / 1e6:10.2f} MB {case.flops / 1e9:10.3f} GFLOP")
        return 0
    from wellhead.testing.bench import measure, needed_card, selected
    from wellhead.testing.record import append, command

    chosen = [(spec, case) for spec in specs for case in selected(spec, args.case, needed=len(specs) == 1)]
    needed_card()
    if args.arch != "native":
        from wellhead.testing.moved import adopt

        adopt(args.arch)
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
        append(args.jsonl, record | {"command": command(args.words)})
    return 1 if wrong else 0
