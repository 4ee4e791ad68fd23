"""`wellhead bench step`: whole steps at a published model's width."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any

from wellhead.cli import options


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bench step: whole steps at a published model's width (--picture draws them)")
    group.add_argument("--config", default="v4-flash", help="which published configuration (v4-flash)")
    group.add_argument(
        "--layers", type=_layers, default=4, metavar="N|fit", help="its first N layers, or as many as fit the card (4)"
    )
    group.add_argument("--batch", type=int, nargs="+", default=[1], help="decoding requests (1)")
    group.add_argument(
        "--drafts", type=int, choices=range(4), default=0,
        help="a step verifies so many drafts of each request behind its newest token (0)",
    )  # fmt: skip
    group.add_argument(
        "--prefill", type=int, nargs="+", default=[], metavar="T", help="prompt steps of T tokens as well"
    )
    group.add_argument("--context", type=int, default=4096, help="position of every request (4096)")
    group.add_argument(
        "--limit", type=int, metavar="N", help="tokens that steps are planned for, as --context-length (the context)"
    )
    group.add_argument(
        "--alone", type=int, metavar="N", help="one rank of N on one card, which sums and gathers nothing"
    )
    group.add_argument(
        "--launches", action="store_true", help="each kind of layer's launches, and by how much each moves the end"
    )
    group.add_argument("--eager", action="store_true", help="launch by launch as well, after the CUDA graphs")


def _layers(word: str) -> int | None:
    """None is "fit"; ValueError for what is no number."""
    return None if word == "fit" else int(word)


def run(args: argparse.Namespace) -> int:
    """Everything is measured before anything is profiled, which slows a process down."""
    if args.picture and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--picture needs matplotlib; install it: pip install 'wellhead[bench]'")
    from wellhead.testing.bench import needed_card
    from wellhead.testing.bench_step import OneRank, StepBench

    needed_card()
    import torch

    from wellhead.dispatch.capability import here
    from wellhead.model.parallel import ALONE, WHOLE
    from wellhead.model.split import Split
    from wellhead.testing.record import append, command
    from wellhead.testing.step_fit import fitting_layers
    from wellhead.testing.step_whole import kinds
    from wellhead.testing.timing import roof

    group, split = (ALONE, WHOLE) if args.group is None else (args.group, options.split(args))
    if args.alone is not None:
        if args.group is not None:
            raise ValueError(f"--alone {args.alone} is one rank on one card; leave out --tp {args.tp}")
        group, split = OneRank(args.alone), Split(0, args.alone, args.experts)
    wrong = [tokens for tokens in args.prefill if not 2 <= tokens <= args.context]
    if wrong:
        raise ValueError(f"--prefill {wrong[0]}: expected 2 tokens to the context's {args.context}")
    measured = roof()
    layers, limit = args.layers, args.context if args.limit is None else args.limit
    if layers is None:
        total = torch.cuda.mem_get_info(args.device)[1]
        layers = fitting_layers(args.config, split, total, args.batch, args.context, limit, args.drafts, here())
    bench = StepBench(
        args.config, layers, args.batch, args.context, limit=limit, drafts=args.drafts, split=split, group=group,
        device=args.device,
    )  # fmt: skip
    ladders = {mode: bench.steps(captured=mode == "captured") for mode in ("captured", *["eager"] * args.eager)}
    found = [bench.decode(steps, batch, measured, mode) for mode, steps in ladders.items() for batch in args.batch]
    found += [bench.prefill(tokens, measured) for tokens in args.prefill]
    shown = kinds(bench.config) if args.launches else ()
    records = [one.profiled(launches=shown) for one in found]
    if group.rank:
        return 0
    for record in records:
        tell(record)
        append(args.jsonl, record | {"command": command(args.words)})
    if args.picture:
        from wellhead.testing.step_picture import draw

        draw(args.picture, records)
        print(args.picture)
    return 0


def tell(record: dict[str, Any]) -> None:
    """One measurement, for people."""
    what = f"{record['tokens']} tokens" if record["mode"] == "prefill" else f"batch {record['batch']}"
    drafts = record.get("drafts", 0)
    what += f" of {1 + drafts} tokens each" if drafts else ""
    ranks = f"{record['tp']}{' (one rank alone)' if record.get('alone') else ''}"
    print(
        f"{record['model']}, {record['layers']} layers, tp {ranks}, {what}, "
        f"context {record['context']}, {record['mode']}: {record['ms_mean']:.3f} ms "
        f"(median {record['ms_median']:.3f}), bound {record['bound_ms']:.3f} ms ({record['share']:.1%}), "
        f"{record['tok_s']:.1f} tokens/s{' verified' if drafts else ''}, "
        f"{record['launches_per_layer']} launches a layer, {record['distinct_experts']} distinct experts"
        + (
            f", {record['memory_gb']:.2f} GB in use ({record['planned_gb']:.2f} planned)"
            if "memory_gb" in record
            else ""
        )
    )
    if drafts:
        print(f"  the next {drafts} drafts, by the MTP module over all those tokens: {record['draft_ms']:.3f} ms")
    if "sums" in record:
        times = (f"{way} {record['sum_8k_us'][way]} and {us} us" for way, us in record["sum_64k_us"].items())
        print(f"  sums over ranks: {record['sums']}; of 8 and 64 KB: {', '.join(times)}")
    if "whole_ms" in record:
        print(
            f"  all {record['whole_layers']} layers, each kind timed here: {record['whole_ms']:.3f} ms, "
            f"bound {record['whole_bound_ms']:.3f} ms ({record['whole_share']:.1%})"
        )
    print(f"  {'op':<20} {'us':>9} {'launches':>9} {'MB':>9}  of the roof")
    for op, of in record["ops"].items():
        share = f"{of['share']:10.1%}" if of["bytes"] and of["share"] is not None else ""
        print(f"  {op:<20} {of['us']:9.1f} {of['launches']:9.1f} {of['bytes'] / 1e6:9.1f} {share}")
    if "timeline" in record:
        from wellhead.testing import step_launches

        print(step_launches.tell(record["timeline"]))
    sys.stdout.flush()
