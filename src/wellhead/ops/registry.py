"""The ops in the order a token meets them, and each one's SPEC.

Importing this module imports no op; a SPEC is imported when it is asked for.
"""

from __future__ import annotations

import importlib

from wellhead.dispatch.spec import OpSpec

OPS = (
    "addresses", "hyper_connection", "norm_quant", "linear", "bf16_linear", "rope", "kv_store", "compressor", "indexer",
    "topk", "sparse_mla", "output_projection", "routing", "moe", "sampling",
)  # fmt: skip


def spec(op: str) -> OpSpec:
    """The SPEC of one op; ValueError names those that exist. Errors while importing it propagate."""
    if op not in OPS:
        raise ValueError(f"no op {op!r}; there are {', '.join(OPS)}")
    found: OpSpec = importlib.import_module(f"wellhead.ops.{op}.spec").SPEC
    if found.name != op:
        raise ValueError(f"ops/{op}/spec.py names its op {found.name!r}; expected {op!r}")
    return found


def specs() -> tuple[OpSpec, ...]:
    """All of them."""
    return tuple(spec(op) for op in OPS)
