"""Read many byte ranges of files in order through a few staging buffers, by several threads ahead of the consumer.

Memory is the buffers and nothing else: files are not mapped. Reading releases the interpreter's lock, so the threads
keep a fast disk (or the page cache) busy while the consumer places what has arrived.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from wellhead.model.shard import CheckpointError

ALIGNMENT = 512  # of a range inside a buffer: any dtype may be viewed there
Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Range(Generic[Tag]):
    """`nbytes` of `file` from byte `offset`; `tag` is what the consumer makes of them."""

    file: Path
    offset: int
    nbytes: int
    tag: Tag


Placed = tuple[int, Range[Tag]]
"""(byte of a buffer, the range that begins there)"""
Batch = tuple[torch.Tensor, int, list[Placed[Tag]]]


class Reader:
    """`buffers` staging buffers of `buffer_bytes` each (pinned for a CUDA device), and `threads` readers."""

    def __init__(self, *, buffer_bytes: int, buffers: int, threads: int, pinned: bool):
        if buffer_bytes < ALIGNMENT or buffers < 1 or threads < 1:
            raise ValueError(
                f"{buffers} buffers of {buffer_bytes} bytes and {threads} threads: expected at least one of each and "
                f"{ALIGNMENT} bytes"
            )
        self.buffer_bytes = buffer_bytes
        self._free = [torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(buffers)]
        self._threads = threads
        self._files: dict[Path, int] = {}

    def batches(self, ranges: Iterable[Range[Tag]], release: Callable[[], None]) -> Generator[Batch[Tag], None, None]:
        """Yield (buffer, bytes used, ranges in it with their places) in order; a range is at most a buffer long.

        The buffer is the consumer's until it asks for the next batch; `release` is called before it is written again.
        CheckpointError when a file ends early or its disk fails. Whatever happens, no thread and no file stays behind.
        """
        waiting: deque[tuple[Batch[Tag], list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="read")
        try:
            for packed, used in _packed(ranges, self.buffer_bytes):
                if not self._free:
                    yield from self._finish(waiting, release)
                buffer = self._free.pop()
                jobs = [pool.submit(self._read, run, buffer) for run in _runs(packed, used // self._threads)]
                waiting.append(((buffer, used, packed), jobs))
            while waiting:
                yield from self._finish(waiting, release)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def _finish(
        self, waiting: deque[tuple[Batch[Tag], list[Future[None]]]], release: Callable[[], None]
    ) -> Iterator[Batch[Tag]]:
        """The oldest batch; afterwards its buffer is free again."""
        batch, jobs = waiting.popleft()
        for job in jobs:
            job.result()
        yield batch
        release()
        self._free.append(batch[0])

    def _read(self, run: list[Placed[Tag]], buffer: torch.Tensor) -> None:
        whole = buffer.numpy().data
        for at, part in run:
            view, done = whole[at : at + part.nbytes], 0
            while done < part.nbytes:
                at_byte = part.offset + done
                try:
                    count = os.preadv(self._descriptor(part.file), [view[done:]], at_byte)
                except OSError as error:
                    raise CheckpointError(f"{part.file.name}: not readable at byte {at_byte} ({error})") from error
                if not count:
                    raise CheckpointError(
                        f"{part.file.name}: ends at byte {at_byte}, expected {part.nbytes - done} more; it "
                        "changed after it was opened: download it again"
                    )
                done += count

    def _descriptor(self, file: Path) -> int:
        """An open file; two threads may open one at once, then the first one in stays."""
        if file not in self._files:
            opened = os.open(file, os.O_RDONLY)
            if self._files.setdefault(file, opened) != opened:
                os.close(opened)
        return self._files[file]


def _packed(ranges: Iterable[Range[Tag]], buffer_bytes: int) -> Iterator[tuple[list[Placed[Tag]], int]]:
    """Ranges in order with their place, as many as a buffer holds, and the bytes used of it."""
    packed: list[Placed[Tag]] = []
    used = end = 0
    for part in ranges:
        if part.nbytes > buffer_bytes:
            raise ValueError(f"a range of {part.nbytes} bytes does not fit a buffer of {buffer_bytes}")
        if end + part.nbytes > buffer_bytes:
            yield packed, used
            packed, used, end = [], 0, 0
        packed.append((end, part))
        used = end + part.nbytes
        end = used + -used % ALIGNMENT
    if packed:
        yield packed, used


def _runs(packed: list[Placed[Tag]], nbytes: int) -> Iterator[list[Placed[Tag]]]:
    """Neighbours of at least `nbytes` together, the last run apart: a job for each small range costs more than it."""
    run: list[Placed[Tag]] = []
    for at, part in packed:
        run.append((at, part))
        if at + part.nbytes - run[0][0] >= nbytes:
            yield run
            run = []
    if run:
        yield run
