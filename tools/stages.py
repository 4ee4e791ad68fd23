"""Commands that run one behind the other, each under its own limit, and what is kept of them in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Stage:
    """Commands that run beside each other; the file that the JSON at the end of their standard output is kept
    in. `must`: its failure ends the run.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    limit: int  # seconds
    must: bool = False
    keep: str | None = None


def run(stage: Stage, out: Path, limit: float) -> dict[str, object]:
    """One stage, ended at its limit with everything it started; its line of stages.jsonl."""
    began, path = time.monotonic(), f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    variables = {**os.environ, "PYTHONPATH": path}
    statuses: list[object] = []
    with (out / "log.txt").open("ab") as log, tempfile.TemporaryDirectory() as folder:
        log.write(f"\n== {stage.name}: {' '.join(stage.commands[0])}\n".encode())
        log.flush()
        running = []
        for number, command in enumerate(stage.commands):
            with (Path(folder) / str(number)).open("wb") as said:
                running.append(
                    subprocess.Popen(command, cwd=ROOT, env=variables, stdout=said, stderr=log, start_new_session=True)
                )
        for process in running:
            try:
                statuses.append(process.wait(max(0.1, began + limit - time.monotonic())))
            except subprocess.TimeoutExpired:
                statuses.append(f"ended after {limit:.0f} s")
        for process in running:
            end(process)
        for number in range(len(running)):
            said_text = (Path(folder) / str(number)).read_text(errors="replace")
            log.write(said_text.encode())
            if stage.keep is not None:
                kept(out / stage.keep, stage.name, said_text)
    wrong = [status for status in statuses if status != 0]
    seconds = round(time.monotonic() - began, 1)
    return {"stage": stage.name, "status": wrong[0] if wrong else "done", "seconds": seconds}


def end(process: subprocess.Popen[bytes]) -> None:
    """The process and what is left of its session; a launch of ranks ends its ranks by itself when it is asked."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kept(path: Path, name: str, said: str) -> None:
    """The JSON object at the end of what was said, with the stage's name, as one line more of a file; none is none."""
    lines = said.strip().splitlines()
    for first in reversed(range(len(lines))):
        if not lines[first].startswith("{"):
            continue
        try:
            found = json.loads("\n".join(lines[first:]))
        except json.JSONDecodeError:
            continue
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": name, **found}) + "\n")
        return


def done(out: Path) -> set[str]:
    """Stages of an earlier call that need not run again."""
    path = out / "stages.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {line["stage"] for line in map(json.loads, lines) if line["status"] == "done"}
