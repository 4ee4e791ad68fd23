"""`wellhead bench serve`: load for an OpenAI endpoint, ours or another's, and what it answered within which time."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
from pathlib import Path

_SLO_FIRST, _SLO_TOKEN = 2.0, 0.1


def add_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("bench serve: load for any OpenAI endpoint")
    group.add_argument("--url", default="http://127.0.0.1:8000", help="the endpoint (http://127.0.0.1:8000)")
    group.add_argument("--model", metavar="NAME", help="model to ask for (the endpoint's first)")
    group.add_argument("--api-key", metavar="KEY", help="sent as a bearer token")
    group.add_argument("--plain", action="store_true", help="ask /v1/completions instead of /v1/chat/completions")
    group.add_argument("--requests", type=int, default=100, metavar="N", help="how many (100)")
    group.add_argument(
        "--rate", type=float, default=2.0, metavar="R", help="Poisson arrivals a second; inf: at once (2)"
    )
    group.add_argument("--concurrency", type=int, default=256, metavar="N", help="open requests at most (256)")
    group.add_argument("--prompt-words", type=int, default=64, metavar="N", help="a prompt's own words (64)")
    group.add_argument("--prefix-words", type=int, default=256, metavar="N", help="words of a shared prefix (256)")
    group.add_argument("--prefix-share", type=float, default=0.5, metavar="F", help="prompts that have one (0.5)")
    group.add_argument("--prefixes", type=int, default=4, metavar="N", help="different shared prefixes (4)")
    group.add_argument("--max-tokens", type=int, default=32, metavar="N", help="tokens of an answer at most (32)")
    group.add_argument("--ignore-eos", action="store_true", help="exactly so many (not known to every endpoint)")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of arrivals and prompts (0)")
    group.add_argument(
        "--slo-ttft", type=float, default=_SLO_FIRST, metavar="S", help=f"goodput: first token ({_SLO_FIRST})"
    )
    group.add_argument(
        "--slo-tpot", type=float, default=_SLO_TOKEN, metavar="S", help=f"goodput: a further one ({_SLO_TOKEN})"
    )
    group.add_argument("--each", type=Path, metavar="FILE", help="append a JSON line a request to FILE")
    group.add_argument("--note", metavar="TEXT", help="goes into the line of --jsonl: which server, what machine")
    return group


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if a request failed."""
    needed = ["httpx", *(["matplotlib"] if args.picture else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"bench serve needs {', '.join(missing)}; install them: pip install 'wellhead[bench]'")
    from wellhead.testing import load_report
    from wellhead.testing.load import Load
    from wellhead.testing.load import run as run_load
    from wellhead.testing.record import append, command, host, origin

    load = Load(
        requests=args.requests, rate=args.rate, concurrency=args.concurrency, prompt_words=args.prompt_words,
        prefix_words=args.prefix_words, prefix_share=args.prefix_share, prefixes=args.prefixes,
        max_tokens=args.max_tokens, ignore_eos=args.ignore_eos, seed=args.seed,
    )  # fmt: skip
    began_on = host()
    answered = asyncio.run(run_load(load, args.url, model=args.model, key=args.api_key, chat=not args.plain))
    found = load_report.summary(load, answered, args.slo_ttft, args.slo_tpot)
    print(load_report.table(found))
    errors = [one.error for one in answered if one.error is not None]
    for error in errors[:3]:
        print(f"failed: {error}", file=sys.stderr)
    told = {"url": args.url, "note": args.note, **began_on, **origin(), "command": command(args.words, args.api_key)}
    append(args.jsonl, {**found, **told})
    for line in load_report.lines(answered):
        append(args.each, line)
    if args.picture is not None:
        load_report.draw(args.picture, found, answered, f"{args.url}: {load.requests} requests, {load.rate:g} a second")
    return 1 if found["failed"] else 0
