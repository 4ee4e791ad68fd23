"""`wellhead eval`: accuracy on held-out questions, with intervals."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wellhead.cli import options
from wellhead.cli.modes import Modes
from wellhead.evals import FAMILIES, WITH_DATA

if TYPE_CHECKING:
    from wellhead.engine.llm import LLM
    from wellhead.evals.task import Result, Task

_EXAMPLES = """examples:
  wellhead eval
  wellhead eval --tasks sums,recall --json
  wellhead eval --tasks gsm8k --data gsm8k_test.jsonl --shots 5 -n 200 --model ~/models/V4-Flash
  wellhead eval --tasks gpqa --data gpqa_diamond.csv --seed 1
  wellhead eval --device cuda --concurrency 64 --against cpu
  wellhead eval --device cuda --eager --against alone
  wellhead eval --speculative-tokens 3 --against alone
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "eval",
        help="measure accuracy",
        description="Measure accuracy, greedily, with 95 % Wilson intervals. Questions of all tasks run side by side. "
        "--against answers them a second time; an answer that differs by more than a tie makes the exit status 1.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tasks",
        default=",".join(FAMILIES),
        metavar="NAMES",
        help=f"any of {','.join(FAMILIES)} (all), or one of {', '.join(WITH_DATA)} with --data",
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="questions of gsm8k (.jsonl) or gpqa (.csv, .jsonl)")
    modes = Modes(parser, lambda args: f"eval --tasks {args.tasks.strip()}")
    with modes.only("eval --tasks gsm8k"):
        parser.add_argument("--shots", type=int, default=5, metavar="K", help="worked examples of gsm8k (5)")
    with modes.only("eval --tasks gsm8k", "eval --tasks gpqa"):
        parser.add_argument("--seed", type=int, default=0, metavar="S", help="draws examples and orders choices (0)")
    parser.add_argument("-n", dest="count", type=int, metavar="N", help="ask only the first N of each task")
    parser.add_argument(
        "--concurrency", type=int, default=32, metavar="N", help="questions that run at a time at most (32)"
    )
    parser.add_argument(
        "--against", choices=options.REFERENCES,
        help="compare the answers, token by token, with those of another way, always without drafts: cpu (torch), "
        "eager (no CUDA graphs), alone (one question at a time); with --tp, one process",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--show-wrong", action="store_true", help="print each wrong answer to stderr")
    options.add_model(parser)
    options.add_debug(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    names = chosen_tasks(args.tasks, args.data)
    if args.concurrency < 1:
        raise ValueError(f"--concurrency must be at least 1, got {args.concurrency}")
    if args.against == "eager" and (args.eager or args.device == "cpu"):
        way = "--eager" if args.eager else "--device cpu"
        raise ValueError(f"--against eager: {way} has no CUDA graphs that could be compared with eager steps")
    tasks = _tasks(names, args)  # before the model: a bad data file is reported at once
    from wellhead.evals import against, report

    model = options.model_name(args)
    results, seconds = _answers(options.load(model, args, max_running=args.concurrency), tasks, "questions")
    if args.show_wrong:
        for result in results:
            for prompt, expected, text in result.wrong:
                print(f"{result.name}: {prompt[-80:]!r}: expected {expected!r}, got {text!r}", file=sys.stderr)
    if not args.json:
        print(*map(report.line, results), report.speed_line(results, seconds), sep="\n", flush=True)
    compared = None
    if args.against is not None:
        reference = options.load_reference(args.against, model, args, max_running=args.concurrency)
        expected_results, _ = _answers(reference, tasks, args.against)
        compared = args.against, against.compare(reference, tasks, results, expected_results)
        if not args.json:
            print(*report.difference_lines(args.against, results, compared[1]), sep="\n")
    if args.json:
        print(report.as_json(results, seconds, model or "embedded", args.seed, compared))
    return 1 if compared and any(tally.wrong for tally in compared[1]) else 0


def _answers(llm: LLM, tasks: list[Task], title: str) -> tuple[list[Result], float]:
    """Results and seconds, with a progress bar where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from wellhead.evals.task import ask

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=sum(len(task.questions) for task in tasks))
        began = time.perf_counter()
        results = ask(llm, tasks, lambda: progress.advance(bar))
        return results, time.perf_counter() - began


def chosen_tasks(tasks: str, data: Path | None) -> list[str]:
    """The task names of a comma-separated list. ValueError for an unknown name or a misplaced --data."""
    names = [name.strip() for name in tasks.split(",")]
    known = FAMILIES + WITH_DATA
    for name in names:
        if name not in known:
            raise ValueError(f"--tasks: no task {name!r}; there are {', '.join(known)}")
    if any(name in WITH_DATA for name in names):
        if len(names) > 1:
            raise ValueError(f"--tasks {tasks}: {' and '.join(WITH_DATA)} run alone, each with its own --data")
        if data is None:
            raise ValueError(f"--tasks {tasks} needs --data FILE with its questions")
    elif data is not None:
        raise ValueError(f"--data {data} is read only by {' and '.join(WITH_DATA)}; --tasks is {tasks}")
    return names


def _tasks(names: list[str], args: argparse.Namespace) -> list[Task]:
    if args.count is not None and args.count < 1:
        raise ValueError(f"-n must be at least 1, got {args.count}")
    if names == ["gsm8k"]:
        from wellhead.evals.gsm8k import load_gsm8k

        return [load_gsm8k(args.data, args.shots, args.seed, args.count)]
    if names == ["gpqa"]:
        from wellhead.evals.gpqa import load_gpqa

        return [load_gpqa(args.data, args.seed, args.count)]
    from wellhead.evals.families import load_families

    families = load_families()
    return [families[name].first(args.count) for name in names]
