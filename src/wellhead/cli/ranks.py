"""`--tp` and its companions: a command over several processes, of which rank 0 runs it and the others follow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wellhead import environment
from wellhead.engine.launch import EXIT_LOST, Ranks, hold, launch

if TYPE_CHECKING:
    from wellhead.model.parallel import Group


def add(parser: argparse.ArgumentParser) -> None:
    """Options of commands that load a model."""
    group = parser.add_argument_group("several processes, or hosts (run the same command on each)")
    group.add_argument("--tp", type=int, default=1, metavar="N", help="split the model over N ranks (1)")
    group.add_argument(
        "--experts", default="width", metavar="width|expert",
        help="a rank holds a part of every expert's width, or some experts whole (width)",
    )  # fmt: skip
    group.add_argument(
        "--sums", default="auto", metavar="auto|nccl|one-shot",
        help="how ranks on cards add small tensors: nccl; one-shot, through each other's memory; auto is one-shot for "
        "two ranks that can, else nccl (auto)",
    )  # fmt: skip
    group.add_argument("--nnodes", type=int, default=1, metavar="N", help="hosts that share the ranks (1)")
    group.add_argument("--node-rank", type=int, default=0, metavar="I", help="which of them this is, from 0 (0)")
    group.add_argument("--master", metavar="HOST:PORT", help="where the ranks meet: a free port of host 0")
    group.add_argument("--cp", type=int, default=1, metavar="N", help="context parallel ranks; only 1 so far")
    for name, kind in (("--rank", int), ("--rendezvous", str), ("--lifeline", int)):  # a launch gives them to a rank
        group.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.set_defaults(group=None, everywhere=False)  # everywhere: every rank runs the command itself


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Run a parsed command: here, or over as many processes as it asks for. argv: the words it was parsed from."""
    if not hasattr(args, "rank"):
        return int(args.run(args))
    if args.rank is not None:
        return _as_rank(args)
    ranks = Ranks(args.tp, args.nnodes, args.node_rank, args.master)
    _check(args)
    if ranks.world == 1:
        return int(args.run(args))

    def command(rank: int, rendezvous: str, lifeline: int) -> list[str]:
        own = ["--rank", str(rank), "--rendezvous", rendezvous, "--lifeline", str(lifeline)]
        return [sys.executable, "-m", "wellhead", argv[0], *own, *argv[1:]]

    return launch(ranks, command, verbose=args.debug, drains=getattr(args, "drains", False))


def _check(args: argparse.Namespace) -> None:
    """Errors that need no model, before any process is started."""
    if args.experts not in ("width", "expert"):
        raise ValueError(f"--experts {args.experts}: expected width or expert")
    if args.device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device {args.device}: expected cpu or cuda")
    if args.cp != 1:
        raise NotImplementedError(f"--cp {args.cp}: context parallelism is not implemented, expected 1")
    if args.sums != "auto":
        from wellhead.model import sums

        sums.check(args.sums, args.tp, args.device.split(":")[0])
    from wellhead.cli import options

    if not args.everywhere:
        options.impl(args)
    if args.tp > 1 and ":" in args.device:
        raise ValueError(f"--device {args.device} with --tp {args.tp}: expected cpu or cuda, the ranks share the cards")


def _as_rank(args: argparse.Namespace) -> int:
    """This process is one of the ranks."""
    hold(args.lifeline, args.rank)
    environment.without_multicast()
    import torch

    from wellhead.model.parallel import Group, PeerLost

    here = args.tp // args.nnodes
    torch.set_num_threads(max(1, torch.get_num_threads() // here))  # they share this host's cores
    if args.device == "cuda":
        if (cards := torch.cuda.device_count()) < here:
            raise ValueError(f"--tp {args.tp} --device cuda: {here} ranks on this host, torch sees {cards} CUDA cards")
        args.device = f"cuda:{args.rank % here}"
    try:
        args.group = Group.join(args.rendezvous, args.rank, args.tp, args.device, args.sums)
        if args.everywhere:
            status = int(args.run(args))
        elif args.rank:
            _follow(args, args.group)
            status = 0
        else:
            from wellhead.engine.parallel import dismiss

            status = int(args.run(args))
            dismiss(args.group)
        args.group.close()
        return status
    except PeerLost as error:
        print(f"wellhead: error: {error}", file=sys.stderr)
        return EXIT_LOST


def _follow(args: argparse.Namespace, group: Group) -> None:
    from wellhead.cli import options
    from wellhead.engine.loading import load_with_runner
    from wellhead.engine.parallel import follow
    from wellhead.model.checkpoint import open_checkpoint, resolve_model
    from wellhead.model.numerics import Numerics

    checkpoint = open_checkpoint(resolve_model(options.model_name(args)))
    numerics = Numerics.named("checkpoint")
    model, make_runner = load_with_runner(
        checkpoint, numerics, args.device, impl=options.impl(args), captured=not args.eager, split=options.split(args),
        group=group, speculative_tokens=args.speculative_tokens, **options.sizes(args),
    )  # fmt: skip
    follow(group, make_runner, model)
