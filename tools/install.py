#!/usr/bin/env python3
"""Make the virtual environment that `make demo` and `make test` use. Standard library only.

    python3 tools/install.py --venv .venv                 # what `wellhead` needs to run
    python3 tools/install.py --venv .venv --extra dev --extra serve --extra bench    # and what its tests need

A stamp file inside the environment records what was installed, from which files; when nothing changed a
second run returns at once. Every failure ends with one line that says what to do, and exit status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 4.0

# Download sizes in MB, rounded up from the wheels of the versions in constraints.txt (x86-64).
CPU_TORCH_MB, CUDA_TORCH_MB, TRITON_MB, BASE_MB, DEV_MB = 200, 2500, 200, 50, 120


class InstallError(Exception):
    """A step that failed, with the line to show."""


def check_python(version: tuple[int, int]) -> None:
    """Raise InstallError, naming a usable interpreter if there is one, unless OLDEST <= version <= NEWEST."""
    if OLDEST <= version <= NEWEST:
        return
    names = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    usable = next((name for name in names if shutil.which(name) and _runs(name)), None)
    fix = f"make demo PYTHON={usable}" if usable else "install one, then: make demo PYTHON=python3.12"
    raise InstallError(
        f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} is needed, "
        f"this is {version[0]}.{version[1]} ({sys.executable}). Try: {fix}"
    )


def _runs(name: str) -> bool:
    return subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0


def has_nvidia() -> bool:
    """True where an NVIDIA card is visible: its driver's tool or its device file."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def reachable(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """True when `url` answers within `seconds`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def wants_cpu_index() -> bool:
    """True when torch should come from the CPU index: Linux, no NVIDIA card, and the index answers."""
    return sys.platform == "linux" and not has_nvidia() and reachable(CPU_INDEX + "/torch/")


def size_line(cpu_index: bool, dev: bool) -> str:
    """What will be downloaded, in words, before anything is."""
    linux = sys.platform == "linux"
    small_torch = cpu_index or not linux
    total = (CPU_TORCH_MB if small_torch else CUDA_TORCH_MB) + (TRITON_MB if linux else 0) + BASE_MB
    total += DEV_MB if dev else 0
    amount = f"{total / 1000:.1f} GB" if total >= 1000 else f"{total} MB"
    if cpu_index:
        why = "torch without CUDA: no NVIDIA card here"
    elif small_torch:
        why = "torch without CUDA"
    elif has_nvidia():
        why = "torch with CUDA"
    else:
        why = f"torch with CUDA, because {CPU_INDEX} does not answer"
    return f"Up to {amount} to download ({why}); what pip has already is not fetched again."


def pinned(name: str, constraints: str) -> str:
    """The line `name==version` of a constraints file's text, without its marker."""
    for line in constraints.splitlines():
        requirement = line.split(";")[0].strip()
        if requirement.startswith(name + "=="):
            return requirement
    raise InstallError(f"constraints.txt pins no '{name}=='; restore it: git checkout constraints.txt")


def fingerprint(extras: list[str]) -> str:
    """Changes when the environment must be made again: the two files that decide it, and the extras."""
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt"):
        digest.update(path.read_bytes())
    digest.update(" ".join(sorted(extras)).encode())
    return digest.hexdigest()


def is_current(stamp: Path, extras: list[str]) -> bool:
    """True when the stamp is of these files and at least these extras, and the python beside it exists."""
    # `exists` follows the link: an interpreter that was upgraded away leaves a dangling one.
    if not stamp.exists() or not (stamp.parent / "bin" / "python").exists():
        return False
    installed = stamp.read_text().split()
    return installed[:1] == [fingerprint(installed[1:])] and set(extras) <= set(installed[1:])


def step(what: str, command: list[str], fix: str) -> None:
    """Run one command from the repository root; raise InstallError naming the step and the fix."""
    print(f"install: {what}", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise InstallError(f"{what} failed (exit {done.returncode}): {' '.join(command)}\n         {fix}")


def install(venv: Path, extras: list[str]) -> None:
    """Make `venv` if it is absent and install wellhead into it, editable, with pinned dependencies."""
    stamp = venv / "wellhead-installed"
    if is_current(stamp, extras):
        return
    check_python(sys.version_info[:2])
    cpu_index = wants_cpu_index()
    print(f"install: Python {platform.python_version()}, into {venv}")
    print(f"install: {size_line(cpu_index, 'dev' in extras)}", flush=True)
    stamp.unlink(missing_ok=True)
    python = venv / "bin" / "python"
    if not python.exists():
        # Only a broken environment is emptied, never some other folder that was named by mistake.
        clear = ["--clear"] if (venv / "pyvenv.cfg").exists() else []
        step(
            f"make {venv}",
            [sys.executable, "-m", "venv", *clear, str(venv)],
            "On Debian and Ubuntu: sudo apt install python3-venv, then make clean, then try again.",
        )
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    if not sys.stdout.isatty():
        pip.append("--quiet")  # a log wants no progress bars; a person waiting for gigabytes does
    retry = "Nothing outside the environment was changed; the same command tries again."
    torch = [pinned("torch", (ROOT / "constraints.txt").read_text()), "-c", "constraints.txt"]
    if cpu_index:
        # --no-deps keeps every other package coming from the ordinary index, in the next step.
        step("torch, CPU wheel", [*pip, *torch, "--no-deps", "--index-url", CPU_INDEX], retry)
    else:
        step("torch", [*pip, *torch], retry)
    target = f".[{','.join(sorted(extras))}]" if extras else "."
    step("wellhead and the rest", [*pip, "-e", target, "-c", "constraints.txt"], retry)
    stamp.write_text(" ".join([fingerprint(extras), *sorted(extras)]) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Parse the two options, install, and turn a failure into one line and exit status 1."""
    parser = argparse.ArgumentParser(description="Make the environment that make demo and make test use.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="its folder (default .venv)")
    parser.add_argument("--extra", action="append", default=[], help="an extra, such as dev")
    args = parser.parse_args(argv)
    try:
        # `absolute`, not `resolve`: a venv's python is a link that must not be followed.
        install(args.venv.absolute(), args.extra)
    except InstallError as error:
        print(f"install: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
