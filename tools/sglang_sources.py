#!/usr/bin/env python3
"""Copy the Python sources of SGLang that tests/integrations imports into a folder: no compiled code, about 25 MB.

    .venv-sglang/bin/python tools/sglang_sources.py FOLDER --python 3.12

Run it in an environment that has SGLang (`make test-sglang` makes one): it runs the comparisons there and copies every
module of SGLang's that they imported, and for the Python named the few packages that SGLang imports besides torch,
Triton and transformers. FOLDER then goes on PYTHONPATH, on a machine that need have no SGLang, no network and no CPU
like this one's. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/integrations/sglang_comparisons.py"
BESIDES = (
    "msgspec", "orjson", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "dill", "einops",
    "compressed-tensors", "loguru", "cloudpickle",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="{}.{}".format(*sys.version_info), help="the Python that will import it")
    given = parser.parse_args()
    if given.folder.exists() and any(given.folder.iterdir()):
        print(f"{given.folder} is not empty; name a new folder", file=sys.stderr)
        return 2
    files = imported()
    found = metadata.distribution("sglang")
    root = Path(str(found.locate_file("")))
    files += [root / str(file) for file in found.files or () if str(file).endswith(".dist-info/METADATA")]
    for file in files:
        target = given.folder / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    for name in ("include", "csrc"):  # SGLang looks for both at import; its CUDA sources stay behind
        (given.folder / "sglang" / "kernels" / "jit" / name).mkdir(parents=True, exist_ok=True)
        (given.folder / "sglang" / "kernels" / "jit" / name / "empty").touch()
    with tempfile.TemporaryDirectory() as wheels:
        download(given.python, wheels)
        for wheel in sorted(Path(wheels).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(given.folder)
    size = sum(file.stat().st_size for file in given.folder.rglob("*") if file.is_file())
    print(f"{given.folder}: {len(files)} of SGLang's files, {size / 1e6:.1f} MB with {', '.join(BESIDES)}")
    return 0


def imported() -> list[Path]:
    """The files of SGLang's modules that a run of the comparisons imports."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "modules"
        environment = {**os.environ, "TRITON_INTERPRET": "1", "SGLANG_MODULES": str(listed)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", TESTS]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}; its output is above")
        return [Path(line) for line in listed.read_text(encoding="utf-8").splitlines()]


def download(python: str, folder: str) -> None:
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux2014", "manylinux_2_17", "manylinux_2_28")]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            f"--python-version={python}", *platforms, "--dest", folder, *BESIDES,
        ],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
