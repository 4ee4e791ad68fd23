"""What a kernel's inner loop consists of, and how many instructions a byte from memory costs, without a card:

    python -m tools.loop_instructions moe gate_up --arch sm80 sm120

Every build of the op whose name contains the words is compiled and disassembled with the tools of Triton's wheel. The
loop is the longest that jumps back (the whole kernel where none does); bytes are those that its loads from global
memory bring, all lanes on, also where a cache has them. A card issues at most 4 instructions a clock and
multiprocessor, of 32 lanes each: over its bandwidth that is what a byte from memory may cost (A100 80GB 9.6, RTX 3090
19, H100 SXM 10, RTX PRO 6000 35, at the boost clocks of their data sheets).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence

from wellhead.dispatch.crosscompile import TARGETS, compile_for, disassemble
from wellhead.ops import registry

_LABEL = re.compile(r"\s*(\.L\w+):")
_CODE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_WIDTH = re.compile(r"\.(?:[US]?)(8|16|64|128)\b")
SHOWN = 8  # kinds of instructions


def longest_loop(text: str) -> list[str]:
    """The instructions, modifiers included, from the target of the farthest jump back to that jump; all without one."""
    labels: dict[str, int] = {}
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif code := _CODE.match(line):
            found.append((code[1], code[2]))
    first, last = 0, len(found)
    jumps = [(at, re.search(r"\.L\w+", rest)) for at, (name, rest) in enumerate(found) if name.startswith("BRA")]
    back = [(at - labels[to[0]], labels[to[0]], at + 1) for at, to in jumps if to and labels.get(to[0], at) < at]
    if back:
        _, first, last = max(back)
    return [name for name, _ in found[first:last]]


def loaded_bytes(loop: Sequence[str]) -> int:
    """That a thread's loads from global memory bring in one turn."""
    total = 0
    for name in loop:
        if name.startswith(("LDG.", "LDGSTS.")):
            width = _WIDTH.search(name)
            total += int(width[1]) // 8 if width else 4
    return total


def main(words: Sequence[str]) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tools.loop_instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("op", help="an op that `wellhead doctor` lists")
    parser.add_argument("name", nargs="?", default="", help="only builds whose name contains this")
    parser.add_argument("--arch", nargs="+", default=["sm120"], choices=tuple(TARGETS), help="(sm120)")
    given = parser.parse_args(words)
    makers = [impl.builds for impl in registry.spec(given.op).impls if impl.builds is not None]
    builds = {build.name: build for made in makers for build in made()}
    wanted = [build for name, build in builds.items() if given.name in name]
    if not wanted:
        raise ValueError(f"op {given.op!r} has no build with {given.name!r}; there are {', '.join(builds)}")
    for build in wanted:
        for arch in given.arch:
            loop = longest_loop(disassemble(compile_for(build, arch).cubin))
            moved = loaded_bytes(loop)
            cost = f"{len(loop) / moved:6.1f} a byte" if moved else "  no loads    "
            most = Counter(name.split(".")[0] for name in loop).most_common(SHOWN)
            kinds = " ".join(f"{name} {count}" for name, count in most)
            print(f"{build.name:<34} {arch:<6} {len(loop):5d} {cost}  {kinds}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"loop_instructions: {error}")
