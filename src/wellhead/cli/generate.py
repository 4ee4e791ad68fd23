"""`wellhead generate`: continue one text."""

from __future__ import annotations

import argparse
import sys

from wellhead.cli import options
from wellhead.cli.measured import path_taken, speed, stream_answer

_EXAMPLES = """examples:
  wellhead generate "15 + 27 ="
  wellhead generate "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1 --max-tokens 64
  wellhead generate - < prompt.txt > continuation.txt

The text goes to stdout, one line of numbers to stderr.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continue a text exactly as given: no chat markup is added.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", help="the text to continue; - reads it from stdin")
    options.add_model(parser)
    options.add_sampling(parser)
    options.add_debug(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    params = options.sampling_params(args)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    llm = options.load(options.model_name(args), args)
    answer = stream_answer(llm, prompt, params, lambda text: print(text, end="", flush=True))
    print(flush=True)
    print(
        f"wellhead: {answer.prompt_tokens} prompt + {answer.tokens} new tokens, "
        f"prefill {speed(answer.prefill_speed)} tok/s, decode {speed(answer.decode_speed)} tok/s, "
        f"ended by {answer.finish_reason}; path: {path_taken(llm)}",
        file=sys.stderr,
    )
    return 0
