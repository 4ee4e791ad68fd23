"""What nvidia-smi says: the driver, its cards, how they hang on PCIe and whether they reach each other.

Standard library only. A missing, failing or hanging nvidia-smi is a finding, not an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from wellhead.dispatch.capability import arch_of

SECONDS = 20.0
_FIELDS = (
    "index", "name", "driver_version", "compute_cap", "memory.total", "memory.used", "pcie.link.gen.max",
    "pcie.link.width.current", "pcie.link.width.max",
)  # fmt: skip
LEAST_DRIVER = {12: 525, 13: 580}
"""CUDA's major version -> the oldest driver branch that runs it (CUDA compatibility guide, minor version rules)."""


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi; None where it says that it does not know. Memory in MiB. The generation is the greatest
    of card and slot: links slow down while nothing runs.
    """

    index: int
    name: str
    driver: str
    arch: str | None
    memory_mib: int | None
    used_mib: int | None
    pcie_generation: int | None
    pcie_width: int | None
    pcie_width_most: int | None

    @property
    def link(self) -> str:
        if self.pcie_width is None or self.pcie_generation is None:
            return "PCIe unknown"
        return f"PCIe {self.pcie_generation} x{self.pcie_width} (of x{self.pcie_width_most})"


@dataclass(frozen=True)
class Driver:
    """`problem` is why nothing is known; peers[i][j] nvidia-smi's word on reading j's memory from i: OK or a code."""

    gpus: tuple[Gpu, ...] = ()
    peers: tuple[tuple[str, ...], ...] = ()
    problem: str | None = None
    installed: bool = True

    @property
    def version(self) -> str | None:
        return self.gpus[0].driver if self.gpus else None


def query() -> Driver:
    """Ask. Never raises."""
    if shutil.which("nvidia-smi") is None:
        return Driver(problem="nvidia-smi is not installed", installed=False)
    said, problem = _smi(f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
    if problem is not None:
        return Driver(problem=problem)
    gpus = tuple(gpu for gpu in map(_gpu, said.splitlines()) if gpu is not None)
    if not gpus:
        return Driver(problem="nvidia-smi lists no card")
    return Driver(gpus, _peers(_smi("topo", "-p2p", "r")[0], len(gpus)) if len(gpus) > 1 else ())


def _smi(*words: str) -> tuple[str, str | None]:
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=SECONDS, errors="replace")
    except subprocess.TimeoutExpired:
        return "", f"nvidia-smi does not answer within {SECONDS:g} s"
    except OSError as error:
        return "", f"nvidia-smi cannot be run: {error.strerror}"
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return "", f"nvidia-smi ended with status {done.returncode}: {lines[0] if lines else 'no word'}"
    return done.stdout, None


def _gpu(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(_FIELDS) or not fields[0].isdigit():
        return None
    capability = re.fullmatch(r"(\d+)\.(\d)", fields[3])
    arch = arch_of((int(capability[1]), int(capability[2]))) if capability else None
    numbers = [int(field) if field.isdigit() else None for field in fields[4:]]
    return Gpu(int(fields[0]), fields[1], fields[2], arch, *numbers)


def _peers(said: str, count: int) -> tuple[tuple[str, ...], ...]:
    """The matrix of `nvidia-smi topo -p2p r`; empty unless there is a row for every card."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    rows = [line.split()[1 : count + 1] for line in plain.splitlines() if re.match(r"\s*GPU\d+\s+\S", line)]
    rows = [row for row in rows if any(cell == "X" for cell in row)]
    return tuple(map(tuple, rows)) if len(rows) == count and all(len(row) == count for row in rows) else ()
