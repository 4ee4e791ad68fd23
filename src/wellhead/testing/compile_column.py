"""One column of the compile tier: every build of every SPEC, compiled by the Triton that this process imports.

    python -m wellhead.testing.compile_column sm120 sm121 > column.json

A process of its own, because one process imports one Triton, and because a kernel that was defined under Triton's
interpreter cannot be compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from wellhead.dispatch.capability import has_unit
from wellhead.dispatch.crosscompile import TARGETS, claimed, compile_for
from wellhead.dispatch.spec import KernelBuild
from wellhead.ops import peer_sum, registry
from wellhead.testing import launch_order

SM12X_SHARED = 101376


@dataclass(frozen=True)
class Row:
    """What one build became on one architecture; `error` holds the compiler's last line if it did not compile."""

    op: str
    build: str
    kernel: str  # "module:function"
    arch: str
    triton: str
    num_warps: int
    num_stages: int
    hot: bool
    claim: str | None  # what the PTX must hold
    registers: int = 0
    shared_bytes: int = 0
    spill_bytes: int = 0
    mma: tuple[str, ...] = ()
    torn: int = 0
    early: tuple[str, ...] = ()  # arguments that a dependent launch reads before it waits
    order: tuple[str, ...] = ()  # what is wrong with what it does before
    error: str | None = None

    @property
    def where(self) -> str:
        return f"{self.op}/{self.build} on {self.arch}, Triton {self.triton}"


def builds(arch: str) -> Iterator[tuple[str, KernelBuild]]:
    """(op, build) of every implementation of every SPEC, and of the sums over ranks, which are no op of one card: those
    that a card of that architecture can be given.
    """
    every = [(spec.name, build) for spec in registry.specs() for impl in spec.impls for build in impl.builds()]
    every += [("peer_sum", build) for build in peer_sum.builds()]
    yield from ((op, build) for op, build in every if build.unit is None or has_unit(build.unit, arch))


def compile_row(op: str, build: KernelBuild, arch: str) -> Row:
    """Compile one build; what Triton refuses becomes the row's error."""
    import triton
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import PTXASError

    function = build.kernel.fn
    row = Row(
        op, build.name, f"{function.__module__}:{function.__name__}", arch, triton.__version__, build.num_warps,
        build.num_stages, build.hot, claimed(build.mma, arch, triton.__version__),
    )  # fmt: skip
    try:
        found = compile_for(build, arch)
    except (CompilationError, PTXASError, RuntimeError) as refused:
        return Row(**{**asdict(row), "error": f"{type(refused).__name__}: {last_line(str(refused))}"})
    figures = {name: getattr(found, name) for name in ("registers", "shared_bytes", "spill_bytes", "mma", "torn")}
    early = tuple(sorted(launch_order.early_arguments(build, found.ptx)))
    return Row(**{**asdict(row), **figures, "early": early, "order": tuple(launch_order.complaints(found))})


def last_line(text: str) -> str:
    """The last line of an error that says something, which is where Triton puts the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^")]
    told = [line for line in lines if "error" in line.lower()] or lines
    return told[-1][:200] if told else "no message"


def objections(rows: Iterable[Row]) -> list[str]:
    """Every row that breaks a rule, in words. Rules hold on SM12x; elsewhere a claimed instruction must be there."""
    found: list[str] = []
    for row in rows:
        card = row.arch.startswith("sm12")
        if row.error is not None:
            if card or row.claim is not None:
                found.append(f"{row.where}: does not compile: {row.error}")
            continue
        if card and row.shared_bytes > SM12X_SHARED:
            found.append(f"{row.where}: {row.shared_bytes} B of shared memory, the limit is {SM12X_SHARED}")
        if row.torn:
            found.append(f"{row.where}: {row.torn} E4M3 pairs are packed and shifted, which ptxas 12.8 compiles wrong")
        found += [f"{row.where}: {said}" for said in row.order]
        if card and row.hot and row.spill_bytes:
            found.append(f"{row.where}: spills {row.spill_bytes} B on the decode path")
        if row.claim is not None and not any(row.claim in line for line in row.mma):
            found.append(f"{row.where}: {row.claim} is claimed, the PTX has {', '.join(row.mma) or 'no tensor core'}")
    return found


def column(archs: Iterable[str], triton_folder: Path | None = None) -> list[Row]:
    """The rows of a fresh process; `triton_folder` holds a Triton to import instead of the installed one."""
    package = Path(__file__).resolve().parents[2]
    path = [str(package)] if triton_folder is None else [str(triton_folder), str(package)]
    command = [sys.executable, "-W", "ignore", "-m", "wellhead.testing.compile_column", *archs]
    environment = {"PYTHONPATH": os.pathsep.join(path), "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["env", *(f"{k}={v}" for k, v in environment.items()), *command], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the compile process failed with status {done.returncode}:\n{done.stderr[-4000:]}")
    lists = ("mma", "early", "order")
    return [Row(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in json.loads(done.stdout)]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch", nargs="+", choices=list(TARGETS))
    archs = parser.parse_args(arguments).arch
    rows = [compile_row(op, build, arch) for arch in archs for op, build in builds(arch)]
    json.dump([asdict(row) for row in rows], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
