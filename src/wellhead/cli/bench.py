"""`wellhead bench OP`: an op's cases on this card, each checked before it is timed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from wellhead.cli import options

_EXAMPLES = """examples:
  wellhead bench linear
  wellhead bench moe --case M=1, --jsonl benchmarks/results/ops.jsonl
  wellhead bench sparse_mla --list
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="time an op on this card",
        description="Time an op's cases by CUDA-graph replay over rotating inputs, beside the roof of the same "
        "process. A case whose result is wrong prints no speed, and the exit status is 1.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("op", help="name of an op, as `wellhead doctor` lists them")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--impl", default="triton", help="implementation to time (triton)")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append one JSON line a case to FILE")
    parser.add_argument("--list", action="store_true", help="list the cases and stop; needs no card")
    options.add_debug(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from wellhead.ops import registry

    spec = registry.spec(args.op)
    if args.list:
        for case in spec.cases:
            print(f"{case.name:<28} {case.bytes / 1e6:10.2f} MB {case.flops / 1e9:10.3f} GFLOP")
        return 0
    from wellhead.testing.bench import Incorrect, measure, needed_card, selected

    cases = list(selected(spec, args.case))
    needed_card()
    from wellhead.testing.timing import roof

    measured = roof()
    print(f"roof: copy {measured.copy:.0f} GB/s, read {measured.read:.0f} GB/s", file=sys.stderr)
    wrong = 0
    for case in cases:
        try:
            record = measure(spec, case, args.impl, measured)
        except Incorrect as error:
            wrong += 1
            print(f"WRONG {error}", flush=True)
            continue
        print(
            f"{record['op']:<12} {record['case']:<28} {record['us_median']:9.2f} us  {record['gb_s']:8.1f} GB/s  "
            f"{record['share']:6.1%} of the roof  error {record['error']:.1e}",
            flush=True,
        )
        if args.jsonl:
            with args.jsonl.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    return 1 if wrong else 0
