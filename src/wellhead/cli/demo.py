"""`wellhead demo`: four questions to the embedded checkpoint, and how fast they were answered."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from wellhead.cli import options
from wellhead.cli.measured import Answer, path_taken, speed, stream_answer

if TYPE_CHECKING:
    from wellhead.evals.task import Question


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="four questions to the embedded checkpoint",
        description="Ask the embedded checkpoint four questions, say which path ran and how fast. "
        "Exit status 1 if an answer is wrong.",
        epilog="examples:\n  wellhead demo\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_debug(parser)
    parser.set_defaults(run=run)


def questions() -> list[tuple[str, Question]]:
    """(what to show, question): three short ones and the longest text of the recall family."""
    from wellhead.evals.families import load_families
    from wellhead.evals.task import Question

    short = [
        Question("15 + 27 =", "42"),
        Question("What is the capital of France?", "Paris", chat=True),
        Question("Translate into Chinese: good morning", "早上好", chat=True),
    ]
    longest = max(load_families()["recall"].questions, key=lambda question: len(question.prompt))
    asked = longest.prompt.rsplit("\n", 1)[-1]
    return [*((question.prompt, question) for question in short), (f"(long text) {asked}", longest)]


def run(args: argparse.Namespace) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from wellhead.engine.sampling_params import SamplingParams
    from wellhead.evals.task import as_prompt, first_line, matches_first_line

    began = time.perf_counter()
    llm = options.load(None)
    loaded = time.perf_counter() - began
    params = SamplingParams(max_tokens=32, temperature=0.0, stop=("\n",))
    table = Table("asked", "answered", "", box=SIMPLE_HEAD)
    for heading in ("prompt\ntokens", "prefill\ntok/s", "decode\ntok/s"):
        table.add_column(heading, justify="right")
    wrong = 0
    for shown, question in questions():
        answer: Answer = stream_answer(llm, as_prompt(question), params, lambda text: None)
        right = matches_first_line(answer.text, question.answer)
        wrong += not right
        table.add_row(
            Text(shown),
            Text(first_line(answer.text) + ("" if right else f" (expected {question.answer})")),
            "[green]right[/]" if right else "[red]WRONG[/]",
            str(answer.prompt_tokens),
            speed(answer.prefill_speed),
            speed(answer.decode_speed),
        )
    console = Console()
    console.print(table)
    console.print(f"embedded checkpoint, loaded in {loaded:.1f} s; path: {path_taken(llm)}", highlight=False)
    if wrong:
        console.print(f"[red]{wrong} of {table.row_count} answers are wrong[/]")
    return 1 if wrong else 0
