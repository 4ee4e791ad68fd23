"""After the warm-up no kernel may be compiled: in the middle of a step that costs seconds, and every request waits.

Triton says through `triton.knobs.runtime.jit_cache_hook` (3.6 to 3.9) that it is about to make a variant of a kernel
that this process has not launched yet, also where its binary lies on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

OPS = "wellhead.ops."


class CompiledLate(RuntimeError):
    """A kernel's variant was wanted that the warm-up had not met."""


def case(about: Mapping[str, Any]) -> str:
    """The variant that Triton's hook speaks of, its arguments as in `KernelBuild.signature`: types, :16 where divisible
    by 16, and the constants' values.
    """
    names, compiled = about["fn"].jit_function.arg_names, about["compile"]
    constants, divisible = compiled["constants"], compiled["configs"][0]
    said = []
    for position, name in enumerate(names):
        if (position,) in constants:
            said.append(f"{name}={constants[position,]}")
        else:
            said.append(f"{name} {compiled['signature'][name]}{':16' if divisible.get((position,)) else ''}")
    return f"{', '.join(said)}; {compiled['num_warps']} warps"


@contextmanager
def frozen() -> Iterator[None]:
    """CompiledLate, naming op, kernel and case, if one of our kernels is compiled inside, by this thread."""
    from triton import knobs

    thread = threading.get_ident()
    with _LOCK:
        if not _depth:
            _before.append(knobs.runtime.jit_cache_hook)
            knobs.runtime.jit_cache_hook = _refuse
        _depth[thread] = _depth.get(thread, 0) + 1
    try:
        yield
    finally:
        with _LOCK:
            _depth[thread] -= 1
            if not _depth[thread]:
                del _depth[thread]
            if not _depth:
                knobs.runtime.jit_cache_hook = _before.pop()


# One hook for all threads: if each put its own in place, one that leaves would take another's away or bring it back.
_LOCK = threading.Lock()
_depth: dict[int, int] = {}  # of the threads that are inside
_before: list[Any] = []  # the hook that was there


def _refuse(**about: Any) -> bool | None:
    kernel = about["fn"]
    if threading.get_ident() in _depth and kernel.module.startswith(OPS):
        op = kernel.module.removeprefix(OPS).split(".")[0]
        raise CompiledLate(
            f"op {op!r}: kernel {kernel.name} would be compiled in the middle of a step, for {case(about)}; "
            "kernels are compiled before the engine is ready, so this is a case that engine.warm_up does not know"
        )
    for before in _before:
        if before is not None:
            return bool(before(**about))
    return None
