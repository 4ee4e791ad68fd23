"""`wellhead serve`: an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
from pathlib import Path

from wellhead.cli import options
from wellhead.dispatch import libraries

_EXAMPLES = """examples:
  wellhead serve                                    # the embedded checkpoint, at http://127.0.0.1:8000
  wellhead serve ~/models/V4-Flash --device cuda --tp 2 --context-length 131072
  wellhead serve --host 0.0.0.0 --api-key-file key  # for others; give it a key then

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'

A chat page is at /, /ready answers 200 when requests are taken, /metrics is for Prometheus. SIGTERM and Ctrl-C let the
running answers finish; a second one does not.
"""
MEM_FRACTION = 0.9


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="answer OpenAI's API over HTTP",
        description="Serve a model over OpenAI's API, with a chat page.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_model(parser, positional=True)
    door = parser.add_argument_group("the door")
    door.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)")
    door.add_argument("--port", type=int, default=8000, help="port, 0 takes a free one (8000)")
    door.add_argument("--api-key", metavar="KEY", help="ask for this key; others can read it in the list of processes")
    door.add_argument("--api-key-file", type=Path, metavar="FILE", help="ask for the key in this file's first line")
    door.add_argument(
        "--served-model-name", action="append", metavar="NAME",
        help="what requests call the model; may be given again (the last part of MODEL)",
    )  # fmt: skip
    door.add_argument("--thinking", action="store_true", help="think unless a request says otherwise")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--context-length", type=int, metavar="N", help="tokens of a request at most (the model's)")
    sizes.add_argument(
        "--max-running-requests", type=int, default=32, metavar="N", help="requests computed together (32)"
    )
    sizes.add_argument(
        "--chunked-prefill-size", dest="chunk_tokens", type=int, metavar="N", help="tokens of a step at most (2048)"
    )
    sizes.add_argument(
        "--cuda-graph-max-bs", dest="largest_graph", type=int, metavar="N",
        help="requests of the largest decode graph, more are launched one by one (--max-running-requests)",
    )  # fmt: skip
    sizes.add_argument(
        "--mem-fraction", type=float, metavar="F",
        help=f"part of a card's memory that the server may take, caches as what is left ({MEM_FRACTION} with cuda)",
    )
    sizes.add_argument("--num-pages", type=int, metavar="N", help="pages of 256 tokens in the caches, instead of that")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-queued-requests", type=int, default=256, metavar="N", help="more are answered 429 (256)")
    limits.add_argument("--max-body-mb", type=int, default=8, metavar="MB", help="of one request's body (8)")
    limits.add_argument("--request-timeout", type=float, default=600, metavar="S", help="seconds for a request (600)")
    limits.add_argument("--grace", type=float, default=30, metavar="S", help="seconds to finish after SIGTERM (30)")
    options.add_debug(parser)
    parser.set_defaults(run=run, drains=True)


def run(args: argparse.Namespace) -> int:
    missing = [name for name in libraries.SERVING if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"wellhead serve needs {', '.join(missing)}; install them: pip install 'wellhead[serve]'")
    _check(args)
    from wellhead.engine.llm import LLM
    from wellhead.engine.story import Phase
    from wellhead.server.limits import Limits
    from wellhead.server.serving import Serving, serve

    logging.basicConfig(level=logging.DEBUG if args.debug else logging.WARNING, format="%(name)s: %(message)s")
    model = options.model_name(args)
    fraction = args.mem_fraction
    if fraction is None and args.num_pages is None and args.device.startswith("cuda"):
        fraction = MEM_FRACTION
    serving = Serving(
        names=args.served_model_name or [Path(model).expanduser().resolve().name if model else "tiny"],
        host="127.0.0.1" if args.host == "localhost" else args.host,
        port=args.port,
        key=_key(args),
        thinking=args.thinking,
        ranks=args.tp,
        may_recover=args.device == "cpu" and args.tp == 1,
        limits=Limits(
            body_bytes=args.max_body_mb << 20,
            queued=args.max_queued_requests,
            request_seconds=args.request_timeout,
            grace_seconds=args.grace,
        ),
    )

    def load(phase: Phase) -> LLM:
        return options.load(
            model, args, max_running=args.max_running_requests, num_pages=args.num_pages,
            mem_fraction=fraction, phase=phase,
        )  # fmt: skip

    serve(serving, load)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Options that would end a start-up, some of them only after the weights were loaded."""
    if args.largest_graph is not None and (args.eager or args.device == "cpu" or args.largest_graph < 1):
        raise ValueError(
            f"--cuda-graph-max-bs {args.largest_graph}: expected at least 1, with --device cuda and without --eager"
        )
    for name, value, least in (
        ("--max-running-requests", args.max_running_requests, 1), ("--num-pages", args.num_pages, 1),
        ("--max-queued-requests", args.max_queued_requests, 0), ("--max-body-mb", args.max_body_mb, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise ValueError(f"{name} {value}: expected at least {least}")
    if not args.request_timeout > 0:
        raise ValueError(f"--request-timeout {args.request_timeout}: expected more than 0 seconds")
    if not 0 <= args.grace < math.inf:
        raise ValueError(f"--grace {args.grace}: expected a finite number of seconds, at least 0")
    least = args.max_running_requests * (1 + max(0, args.speculative_tokens))
    if args.chunk_tokens is not None and args.chunk_tokens < least:
        raise ValueError(
            f"--chunked-prefill-size {args.chunk_tokens}: expected at least {least}, what a step of "
            f"--max-running-requests {args.max_running_requests} may take; raise it, or lower that"
        )


def _key(args: argparse.Namespace) -> str | None:
    if args.api_key is not None and args.api_key_file is not None:
        raise ValueError("--api-key and --api-key-file are both given; give one")
    if args.api_key_file is None:
        key = args.api_key
    else:
        lines = args.api_key_file.read_text(encoding="utf-8").splitlines()
        key = lines[0].strip() if lines else ""
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise ValueError("the API key is empty or holds characters that no HTTP header can carry")
    return key
