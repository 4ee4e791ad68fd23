"""Our ops inside other engines. Importing this room, or anything in it, imports no engine.

`targets` holds what a replacement of another project's function must satisfy, `calls` the ops as functions over an
engine's tensors; `sglang*` and `transformers*` are the adapters.
"""

from __future__ import annotations

from wellhead.integrations.targets import Row

ENGINES = ("sglang", "transformers")


def report(engine: str) -> list[Row]:
    """What would be replaced in the installed `engine`, what not and why; ValueError names the engines there are."""
    if engine == "sglang":
        from wellhead.integrations import sglang

        return sglang.report()
    if engine == "transformers":
        from wellhead.integrations import transformers

        return transformers.report()
    raise ValueError(f"no integration with {engine!r}; there are {', '.join(ENGINES)}")
