#!/usr/bin/env python3
"""Put the Tritons of the compile tier beside each other: .triton-versions/<version>/ holds one wheel each.

    python3 tools/triton_versions.py          # download what is missing, print one folder a line

The installed Triton is one column already and is not downloaded again. A folder is complete once its stamp is there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".triton-versions"
OLDEST, PINNED, NEWEST = "3.6.0", "3.7.1", "3.9.0"
VERSIONS = (OLDEST, PINNED, NEWEST)
STAMP = "complete"


def installed() -> str | None:
    """The version of the Triton that this interpreter imports, None without one."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def ready(version: str) -> Path | None:
    """The folder of a downloaded version, None if it is not there whole."""
    found = FOLDER / version
    return found if (found / STAMP).is_file() else None


def fetch(version: str) -> Path:
    """Download one version with pip, without its dependencies. RuntimeError holds pip's last line."""
    found = ready(version)
    if found is not None:
        return found
    target = FOLDER / version
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    done = subprocess.run([*command, f"triton=={version}"], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(target)
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise RuntimeError(f"triton {version} could not be downloaded: {said[-1]}")
    (target / STAMP).write_text(version + "\n", encoding="utf-8")
    return target


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for version in VERSIONS:
        if version == installed():
            print(f"{version}\tinstalled")
            continue
        try:
            print(f"{version}\t{fetch(version)}")
        except RuntimeError as problem:
            print(problem, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
