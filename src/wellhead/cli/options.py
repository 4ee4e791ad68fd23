"""Options that several commands share, and what they become: a model and its sampling parameters."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wellhead import environment
from wellhead.cli import ranks

if TYPE_CHECKING:
    from wellhead.engine.llm import LLM
    from wellhead.engine.sampling_params import SamplingParams
    from wellhead.model.split import Split

REFERENCES = ("cpu", "eager", "alone")  # ways to answer that others are compared with
_SIZES = ("chunk_tokens", "context_length", "largest_graph")


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_model(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    described = "checkpoint folder or hub id (default: $WELLHEAD_MODEL, else the embedded checkpoint)"
    if positional:
        parser.add_argument("model", nargs="?", metavar="MODEL", help=described)
    else:
        parser.add_argument("--model", metavar="FOLDER|HUB_ID", help=described)
    parser.add_argument(
        "--device", default="cpu", metavar="cpu|cuda", help="cuda computes in kernels on the card, cpu in torch (cpu)"
    )
    add_impl(parser)
    parser.add_argument(
        "--eager", action="store_true", help="launch decode steps one by one instead of as CUDA graphs (with cuda)"
    )
    parser.add_argument(
        "--disable-overlap-schedule", action="store_true",
        help="read every step's tokens before the next one is launched (with cuda and without drafts it need not wait)",
    )  # fmt: skip
    parser.add_argument(
        "--speculative-tokens", type=int, default=0, metavar="N",
        help="guess 1 to 3 tokens ahead with the model's MTP layer and check them in one step (0)",
    )  # fmt: skip
    ranks.add(parser)


def add_impl(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--impl",
        action="append",
        default=[],
        metavar="OP=NAME",
        help="this implementation of an op, or fail (auto: the first that fits); may be given again",
    )


def impl(args: argparse.Namespace) -> Mapping[str, str]:
    """{op: implementation} of `--impl`; ValueError names what exists."""
    from wellhead.dispatch.choose import parse_forced
    from wellhead.ops import registry

    return parse_forced(args.impl, registry.specs()) if args.impl else {}


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=256, metavar="N", help="tokens to generate at most (256)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (0)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep this probability mass (1)")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="keep this many tokens, 0 all (0)")
    group.add_argument("--seed", type=int, metavar="S", help="makes sampling repeatable")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be given again"
    )


def model_name(args: argparse.Namespace) -> str | None:
    """The model asked for; None is the embedded checkpoint."""
    return args.model or environment.default_model()


def load(model: str | None, args: argparse.Namespace | None = None, **more: Any) -> LLM:
    """Load a model as the options of `add_model` say, with a progress bar where stderr is a terminal. torch is first
    imported here. more: parameters of LLM that not every command has as options.
    """
    from wellhead.engine.llm import LLM
    from wellhead.engine.story import Story

    progress = sys.stderr.isatty()
    if args is None:
        return LLM(model, progress=progress)
    if progress and args.device != "cpu":
        more.setdefault("phase", Story().phase)  # minutes; on a CPU it is seconds
    return LLM(model, progress=progress, **engine_options(args), **more)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `LLM` takes of `add_model`'s options, and of the sizes that `serve` has besides."""
    found: dict[str, Any] = {
        "device": args.device,
        "impl": impl(args),
        "captured": not args.eager,
        "overlap": not args.disable_overlap_schedule,
        "speculative_tokens": args.speculative_tokens,
    }
    if args.group is not None:
        found |= {"split": split(args), "group": args.group}
    return found | sizes(args)


def sizes(args: argparse.Namespace) -> dict[str, Any]:
    """Sizes that every rank must be given alike; empty for commands without them."""
    return {name: getattr(args, name) for name in _SIZES if getattr(args, name, None) is not None}


def load_reference(way: str, model: str | None, args: argparse.Namespace, max_running: int) -> LLM:
    """The same model in one process, without drafts, in one of the `REFERENCES` ways; "cpu" is the torch references."""
    from wellhead.engine.llm import LLM

    progress = sys.stderr.isatty()
    if way == "cpu":
        return LLM(model, progress=progress, max_running=max_running)
    return LLM(
        model,
        progress=progress,
        device=args.device,
        impl=impl(args),
        captured=way != "eager" and not args.eager,
        max_running=1 if way == "alone" else max_running,
    )


def split(args: argparse.Namespace) -> Split:
    """The part of the model that this rank holds."""
    from wellhead.model.split import Split

    return Split(args.rank, args.tp, args.experts)


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The parameters of `add_sampling`; ValueError for a value out of range."""
    from wellhead.engine.sampling_params import SamplingParams

    return SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        stop=tuple(args.stop),
    )
