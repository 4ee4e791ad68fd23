"""One command, several processes: starts this host's ranks and sees to it that they end together.

Rank 0 has the terminal. The others read nothing; what they write is kept and shown when one of them fails. A rank that
dies takes the rest with it, and ranks end by themselves when the process that started them is gone, however it went.
Ctrl-C reaches rank 0 by itself and is its to answer (a chat only stops its answer); where rank 0 runs on another host
it ends the ranks of this one. Imports nothing heavy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import IO

from wellhead.dispatch import signals

EXIT_ERROR, EXIT_LOST, EXIT_INTERRUPTED = 2, 3, 130
POLL_SECONDS = 0.05
SETTLE_SECONDS = 0.5  # between the first death and naming who died: the others may be dying of it
LEAVE_SECONDS = 15.0  # for the others once rank 0 is done
KILL_SECONDS = 3.0  # between asking a process to end and killing it


@dataclass(frozen=True)
class Ranks:
    """`world` ranks over `nodes` hosts, this one being host `node`; `master` is host:port of rank 0's host where there
    are several.
    """

    world: int
    nodes: int = 1
    node: int = 0
    master: str | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.world < 1 or self.world % self.nodes:
            raise ValueError(f"--tp {self.world} --nnodes {self.nodes}: expected as many ranks on every host")
        if not 0 <= self.node < self.nodes:
            raise ValueError(f"--node-rank {self.node}: expected 0 to {self.nodes - 1} with --nnodes {self.nodes}")
        if self.nodes > 1 and self.master is None:
            raise ValueError(f"--nnodes {self.nodes} needs --master HOST:PORT, an address of the host of node rank 0")
        host, _, port = (self.master or "here:1").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--master {self.master}: expected HOST:PORT")

    @property
    def local(self) -> range:
        """This host's ranks."""
        each = self.world // self.nodes
        return range(self.node * each, (self.node + 1) * each)


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    written: IO[bytes] | None  # None where it writes to the terminal


class _Ended(BaseException):
    """A signal asks to end; the status to end with."""


def launch(
    ranks: Ranks, command: Callable[[int, str, int], Sequence[str]], *, verbose: bool = False, drains: bool = False
) -> int:
    """Run command(rank, rendezvous URL, lifeline) for each of this host's ranks; the exit status of all of it.

    A rank must call `hold` with its lifeline. `verbose` shows all that a failed rank wrote, not its last line only.
    `drains`: rank 0 ends by itself, and the others with it, after it was asked by SIGTERM; asked again, all are ended.
    """
    if ranks.nodes > 1:
        print(f"wellhead: host {ranks.node} of {ranks.nodes}, they meet at {ranks.master}", file=sys.stderr)
    lifeline, held = os.pipe()
    started: list[_Rank] = []
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    handlers[signal.SIGINT] = signal.signal(signal.SIGINT, _let_rank_0_answer if ranks.node == 0 else _end)
    with tempfile.TemporaryDirectory(prefix="wellhead-") as folder:
        url = f"tcp://{ranks.master}" if ranks.master else f"file://{folder}/meeting"
        try:
            for number in ranks.local:
                started.append(_start(number, command(number, url, lifeline), lifeline))
            if drains and ranks.node == 0:
                signal.signal(signal.SIGTERM, partial(_drain, started[0].process))
            return _watch(started, verbose)
        except _Ended as ended:
            return int(ended.args[0])
        finally:
            _end_all(started)
            os.close(held)
            os.close(lifeline)
            for signal_number, handler in handlers.items():
                signal.signal(signal_number, handler)


def hold(lifeline: int, rank: int) -> None:
    """In a rank: end when the process that started it ends, and leave Ctrl-C to rank 0."""
    if rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        os.read(lifeline, 1)  # nothing is ever written: this returns when the other end is closed
        os._exit(EXIT_LOST)

    threading.Thread(target=wait, daemon=True).start()


def _start(number: int, command: Sequence[str], lifeline: int) -> _Rank:
    if number == 0:
        return _Rank(0, subprocess.Popen(command, pass_fds=[lifeline]), None)
    written = tempfile.TemporaryFile()
    process = subprocess.Popen(
        command, pass_fds=[lifeline], stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT
    )
    return _Rank(number, process, written)


def _watch(ranks: Sequence[_Rank], verbose: bool) -> int:
    """Wait for the end, good or bad; says on stderr which rank failed and how."""
    lead = ranks[0]  # rank 0, or on another host the first of those that follow it
    while lead.process.poll() != 0 and not any(rank.process.poll() for rank in ranks):
        time.sleep(POLL_SECONDS)
    if lead.process.poll() != 0:
        time.sleep(SETTLE_SECONDS)
    if lead.process.poll() == 0:
        return _leave(ranks)
    failed = [rank for rank in ranks if rank.process.poll()]
    first = [rank for rank in failed if rank.process.returncode != EXIT_LOST] or failed
    for rank in first:
        status = rank.process.returncode
        if rank.number == 0 and status in (EXIT_ERROR, EXIT_INTERRUPTED, -signal.SIGINT):
            return EXIT_ERROR if status == EXIT_ERROR else EXIT_INTERRUPTED  # it has said why
    for rank in first:
        print(f"wellhead: error: rank {rank.number} {_how(rank, verbose)}; all ranks are ended", file=sys.stderr)
    return EXIT_ERROR


def _leave(ranks: Sequence[_Rank]) -> int:
    """Rank 0 is done and has told the others so; wait for them."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while time.monotonic() < deadline and any(rank.process.poll() is None for rank in ranks):
        time.sleep(POLL_SECONDS)
    worst = [rank for rank in ranks if rank.process.poll() and ranks[0].number]
    for rank in worst:
        print(f"wellhead: error: rank {rank.number} {_how(rank, False)}", file=sys.stderr)
    return EXIT_ERROR if worst else 0


def _how(rank: _Rank, verbose: bool) -> str:
    """How a rank ended, in words."""
    status = rank.process.returncode
    ended = f"was killed by {signals.name(-status)}" if status < 0 else f"failed with exit status {status}"
    if rank.written is None:
        return ended
    rank.written.seek(0)
    lines = rank.written.read().decode(errors="replace").strip().splitlines()
    if not lines:
        return ended
    said = "\n".join(["", *lines]) if verbose else lines[-1].removeprefix("wellhead: error: ")
    return f"{ended}: {said}"


def _end_all(ranks: Sequence[_Rank]) -> None:
    alive = [rank.process for rank in ranks if rank.process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + KILL_SECONDS
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended(128 + number)


def _drain(lead: subprocess.Popen[bytes], number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _end)
    lead.terminate()


def _let_rank_0_answer(number: int, frame: FrameType | None) -> None:
    """The terminal has told rank 0 as well."""
