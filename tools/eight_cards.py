#!/usr/bin/env python3
"""Several cards in one host: that ranks answer as one does, then what steps of V4-Flash and V4-Pro take, by ranks.

    python -m tools.eight_cards OUT [--stages NAME...] [--budget 570] [--sums auto] [--list]

Stages run one behind the other, each under its own limit; a wrong answer ends it all. In OUT: stages.jsonl (a line a
stage: what ran, how it ended, seconds), step.jsonl (bench step), answers.jsonl, load.jsonl, and log.txt with all that
was said. Stages that are in stages.jsonl as done are left out, so a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.stages import Stage, done, run

WORLDS = (2, 4, 8)
FLASH_GB, SPARE_GB = 160, 20  # on disk; left free


def python(*words: object) -> tuple[str, ...]:
    return (sys.executable, *map(str, words))


def stages(
    cards: int, out: Path, scratch: Path, free_gb: float, *, sums: str = "auto", device: str = "cuda", count: int = 4
) -> list[Stage]:
    """What so many cards and so much disk allow, in order. ValueError for fewer than two cards."""
    worlds = [world for world in WORLDS if world <= cards]
    if not worlds:
        raise ValueError(f"{cards} cards: expected two, four or eight; TP=1 is measured by `wellhead bench step`")
    way = () if sums == "auto" else ("--sums", sums)

    def answers(name: str, world: int, *more: object) -> Stage:
        words = ("-m", "wellhead", "eval", "--tasks", "sums,recall", "-n", count, "--json", "--device", device)
        against = "cpu" if device == "cpu" else "alone"
        ranks = ("--tp", world, "--against", against, *way, *more)
        return Stage(name, (python(*words, *ranks),), 180, must=True, keep="answers.jsonl")

    def step(name: str, model: str, layers: object, world: int, limit: int, *batch: int) -> Stage:
        words = ("-m", "wellhead", "bench", "step", "--config", model, "--layers", layers, "--batch", *batch)
        ranks = ("--tp", world, *way) if world > 1 else ()
        return Stage(name, (python(*words, *ranks, "--jsonl", out / "step.jsonl"),), limit)

    most, divides, files = worlds[-1], scratch / "tiny-widened", scratch / "v4-flash"
    found = []
    if sums == "one-shot" and device == "cuda":
        tests = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernels/test_sums_on_cards.py")
        found.append(Stage("sums", (python(*tests),), 240, must=True))
    found.append(Stage("divides", (python("-m", "tools.widen_tiny", divides),), 120, must=True))
    found += [answers(f"answers-tp{world}", world, "--model", divides) for world in worlds]
    found.append(answers(f"answers-tp{most}-expert", most, "--model", divides, "--experts", "expert"))
    found.append(step(f"pro-tp{most}", "v4-pro", "fit", most, 420, 1, 8, 64))
    found += [step(f"flash-tp{world}", "v4-flash", 43, world, 300, 1, 8, 64) for world in reversed(worlds)]
    found.append(step("flash-tp1", "v4-flash", 16, 1, 240, 1, 8, 64))
    if free_gb >= FLASH_GB + SPARE_GB:
        write = python("-m", "tools.write_checkpoint", files, "--config", "v4-flash")
        found.append(Stage("flash-files", (write,), 400))
        check = ("-m", "tools.load_check", files, "--samples", 20, "--world", most)
        each = tuple(python(*check, "--rank", rank, "--device", f"cuda:{rank}") for rank in range(most))
        found.append(Stage(f"load-tp{most}", each, 400, keep="load.jsonl"))
    return found


def arguments(words: Sequence[str]) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m tools.eight_cards", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results; a second call goes on in it")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="only these, done before or not")
    parser.add_argument("--budget", type=float, default=570, metavar="S", help="seconds of all (570)")
    parser.add_argument("--sums", default="auto", help="how ranks add: auto, nccl or one-shot (auto)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the answers over gloo (cuda)")
    parser.add_argument("--cards", type=int, help="how many to use (all that torch sees)")
    parser.add_argument("-n", dest="count", type=int, default=4, help="questions of each task (4)")
    parser.add_argument("--scratch", type=Path, help="where checkpoints are written (a folder beside the system's own)")
    parser.add_argument("--list", action="store_true", help="print the stages and stop")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    given = arguments(words)
    began, cards = time.monotonic(), given.cards
    if cards is None:
        import torch

        cards = torch.cuda.device_count()
    scratch = given.scratch or Path(tempfile.gettempdir()) / "wellhead-eight-cards"
    scratch.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(scratch).free / 1e9
    all_of_them = stages(
        cards, given.out.resolve(), scratch, free, sums=given.sums, device=given.device, count=given.count
    )
    names = [stage.name for stage in all_of_them]
    unknown = sorted(set(given.stages or ()) - set(names))
    if unknown:
        raise ValueError(f"--stages {unknown[0]}: expected {', '.join(names)}")
    before = set() if given.stages else done(given.out)
    wanted = [s for s in all_of_them if s.name in (given.stages or set(names) - before)]
    if given.list:
        for stage in wanted:
            print(f"{stage.name:<22} {stage.limit:4d} s  {' '.join(stage.commands[0][1:])}")
        return 0
    if not (scratch / "tiny-widened" / "config.json").is_file() and "divides" in before:
        wanted.insert(0, all_of_them[names.index("divides")])  # on another machine
    failed = False
    for stage in wanted:
        left = given.budget - (time.monotonic() - began)
        if left < 20:
            print(f"{stage.name:<22} not begun, {given.budget:.0f} s are spent", flush=True)
            failed = True
            continue
        line = run(stage, given.out, min(stage.limit, left))
        with (given.out / "stages.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{stage.name:<22} {line['status']}, {line['seconds']} s", flush=True)
        failed |= line["status"] != "done"
        if stage.must and line["status"] != "done":
            print(f"{stage.name} must hold before any speed is measured; see {given.out / 'log.txt'}", flush=True)
            return 1
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"eight_cards: {error}")
