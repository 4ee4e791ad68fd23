"""The command `wellhead`. A sub-command is a module with `add(commands)` and `run(args) -> exit status`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from wellhead import __version__, environment
from wellhead.cli import bench, chat, demo, doctor, evaluate, generate, plan, ranks, serve
from wellhead.engine.launch import EXIT_ERROR, EXIT_INTERRUPTED

_EXAMPLES = """examples:
  wellhead demo
  wellhead generate "15 + 27 ="
  wellhead chat --model ~/models/V4-Flash
  wellhead serve ~/models/V4-Flash --device cuda --tp 2
  wellhead eval --tasks sums,recall --json
  wellhead doctor ~/models/V4-Flash
  wellhead plan v4-flash --gpu rtx-pro-6000 --tp 2 --context 131072
  wellhead bench linear
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line. Imports nothing heavy, so `--help` answers at once."""
    top = argparse.ArgumentParser(
        prog="wellhead",
        description="Run DeepSeek-V4 on the NVIDIA GPUs people own, or anywhere on the CPU reference.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"wellhead {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (generate, chat, serve, evaluate, demo, doctor, plan, bench):
        command.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 good, 1 what the command says of it, 2 an error, 130 interrupted.

    Bad input and unreadable files are one line on stderr; `--debug` shows where they were raised.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(words)
    args.words = words
    try:
        if not hasattr(args, "survives"):  # the doctor reports it instead
            environment.check()
        if hasattr(args, "modes"):  # before several processes are started
            args.modes.check(args)
        status = ranks.run(args, words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has left: leave too, and keep the interpreter's own flush at exit quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, NotImplementedError) as error:
        if args.debug:
            raise
        print(f"wellhead: error: {error}", file=sys.stderr)
        return EXIT_ERROR
