"""What every measurement says of where it comes from, and the files it is appended to."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def commit() -> str:
    """The commit that this file was checked out from, "-dirty" if anything tracked differs; "unknown" outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def origin() -> dict[str, str]:
    """Versions of torch and Triton, the commit and today's date: the last keys of a record."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"torch": _version("torch"), "triton": _version("triton"), "commit": commit(), "date": today}


def command(words: Sequence[str], secret: str | None = None) -> str:
    """The command line of a `wellhead` that was given these words, without the files it writes; KEY for a secret."""
    kept = ["wellhead"]
    for word in without_files(words):
        if secret and secret in (word, word.partition("=")[2]):  # `--api-key=KEY` is one word, `--api-key KEY` are two
            word = word.removesuffix(secret) + "KEY"
        kept.append(word)
    return shlex.join(kept)


def without_files(words: Sequence[str]) -> list[str]:
    """The words of a command line but those of the files it writes."""
    kept, told = [], iter(words)
    for word in told:
        option, _, value = word.partition("=")
        if option not in ("--jsonl", "--each", "--picture"):
            kept.append(word)
        elif not value:
            next(told, None)
    return kept


def host() -> dict[str, Any]:
    """cpus: cores of this machine; load: processes that wanted one, the minute's mean, our own included."""
    return {"gpu": "none", "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def append(path: Path | None, record: dict[str, Any]) -> None:
    """One JSON line; nothing where there is no file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
