"""`wellhead plan MODEL --gpu NAME`: what a model takes and how fast it could be on cards, before any download."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from wellhead import environment
from wellhead.cli import options
from wellhead.cli.plan_report import Answer, as_json, as_text
from wellhead.dispatch import capability, cards, libraries
from wellhead.model.reach import CHUNK_TOKENS

if TYPE_CHECKING:
    from wellhead.dispatch.cards import CardModel
    from wellhead.model.config import ModelConfig
    from wellhead.model.fit import Fit
    from wellhead.model.identify import Identity

_EXAMPLES = f"""examples:
  wellhead plan v4-flash --gpu rtx-pro-6000 --tp 2 --context 131072 --concurrency 8
  wellhead plan v4-pro --gpu h200 --tp 8 --json
  wellhead plan someone/V4-Flash-tuned --gpu dgx-spark    # the hub gives config.json, nothing else
  wellhead plan ~/models/V4-Flash --gpu "RTX 5090" --speculative-tokens 2

cards: {", ".join(cards.KEYS)}

Weights, caches and buffers are counted from the configuration; rates are predictions, beside the bound that the card's
bandwidth or tensor cores set. exit status: 0 it fits and runs, 1 it does not, 2 an error
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="what a model takes and how fast it could be on cards, before any download",
        description="Bytes of every rank by kind, the tokens that fit, the largest context, and predicted rates beside "
        "their bounds; from config.json alone.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="folder, config.json, hub id, v4-flash or v4-pro (default: $WELLHEAD_MODEL, else the embedded checkpoint)",
    )  # fmt: skip
    parser.add_argument("--gpu", required=True, metavar="NAME", help="which card, see below")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="split over N cards (1)")
    parser.add_argument("--experts", default="width", metavar="width|expert", help="as in `wellhead serve` (width)")
    parser.add_argument("--context", type=int, default=8192, metavar="L", help="tokens of every request (8192)")
    parser.add_argument("--concurrency", type=int, default=1, metavar="C", help="requests together (1)")
    parser.add_argument("--speculative-tokens", type=int, default=0, metavar="K", help="drafts of the MTP layer (0)")
    parser.add_argument(
        "--chunked-prefill-size", dest="chunk_tokens", type=int, default=CHUNK_TOKENS, metavar="N",
        help="tokens of a step at most (2048)",
    )  # fmt: skip
    parser.add_argument("--mem-fraction", type=float, default=0.9, metavar="F", help="part of a card to take (0.9)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_debug(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    answer = plan(args)
    print(json.dumps(as_json(answer), indent=2) if args.json else as_text(answer))
    return 0 if answer.fit.fits and not answer.fit.missing else 1


def plan(args: argparse.Namespace) -> Answer:
    """ValueError for a card, model or size that cannot be planned; says which and what could."""
    card = cards.find(args.gpu)
    _check(args)
    from wellhead.model.config_file import load_config
    from wellhead.model.identify import identify
    from wellhead.model.locate import find_config

    found = find_config(args.model or environment.default_model())
    identity = identify(found.raw, found.folder)
    if not identity.runs:
        raise ValueError(f"{found.name} is {identity.title}: {identity.why}; {identity.fix}")
    config = load_config(found.raw)
    if args.context > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise ValueError(f"--context {args.context}: expected at most {limit}, the model's limit")
    if args.speculative_tokens and not config.num_nextn_predict_layers:
        raise ValueError(f"--speculative-tokens {args.speculative_tokens}: {identity.title} has no MTP layer; leave it")
    return _answer(args, card, found.name, identity, config)


def _check(args: argparse.Namespace) -> None:
    for name, value, least in (
        ("--tp", args.tp, 1), ("--context", args.context, 2), ("--concurrency", args.concurrency, 1),
        ("--chunked-prefill-size", args.chunk_tokens, 1),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} {value}: expected at least {least}")
    if not 0 <= args.speculative_tokens <= 3:
        raise ValueError(f"--speculative-tokens {args.speculative_tokens}: expected 0 to 3")
    if not 0 < args.mem_fraction <= 1:
        raise ValueError(f"--mem-fraction {args.mem_fraction}: expected a number above 0 and at most 1")
    triton = libraries.probe("triton")
    if triton.version is None:
        raise ValueError(f"buffers are laid out by the kernels' own plans; that needs Triton (Linux): {triton.problem}")


def _answer(args: argparse.Namespace, card: CardModel, name: str, identity: Identity, config: ModelConfig) -> Answer:
    from wellhead.engine.device_runner import ladder
    from wellhead.model.fit import Wanted, fewest, fit
    from wellhead.model.numerics import Numerics
    from wellhead.model.prediction import decode_rate, prefill_rate
    from wellhead.model.split import Split

    triton = libraries.probe("triton").version
    features = capability.features_of(capability.simulated(card.arch), triton)
    numerics, notes = Numerics.named("checkpoint"), [] if not identity.why else [identity.why]
    wanted = Wanted(
        int(card.memory * args.mem_fraction), args.context, args.concurrency, tuple(ladder(args.concurrency)),
        args.chunk_tokens, args.speculative_tokens,
    )  # fmt: skip

    def judge(split: Split) -> Fit:
        return fit(config, numerics, split, wanted, features)

    split = Split(0, args.tp, args.experts)
    split.check(config)
    try:
        asked = judge(split)
    except ValueError as error:
        sizes = f"--concurrency {args.concurrency} with --chunked-prefill-size {args.chunk_tokens}"
        raise ValueError(f"{sizes}: {error}; lower them") from None
    if asked.missing:
        op, why = next(iter(asked.missing.items()))
        notes.append(f"does not run there yet: no kernel of {', '.join(asked.missing)} fits. {op}: {why}")
    smallest, largest = (asked, asked) if asked.fits and not asked.missing else fewest(config, judge, args.experts)
    if card.key not in ("h100", "h200"):
        notes.append(f"predicted with shares of the bounds measured on an H100; {card.name} has not run this yet")
    if args.tp > 1:
        notes.append("sums over ranks take what NCCL took between two H200 over NVLink")
    return Answer(
        name, identity, card, args, asked, smallest, largest,
        decode_rate(card, config, numerics, split, args.concurrency, args.context, args.speculative_tokens),
        prefill_rate(card, config, numerics, split, args.chunk_tokens, args.context),
        notes,
    )  # fmt: skip
