"""The ops in the order a token meets them, and each one's SPEC.

An op whose folder has no spec.py yet has only its reference, and is listed so. Importing this module imports no
op; a SPEC is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from wellhead.dispatch.spec import REFERENCE, ErrorBudget, Impl, OpSpec

SUMMARIES: dict[str, str] = {
    "addresses": "slots of a step's records and entries, through page tables",
    "hyper_connection": "mixing of the residual streams",
    "norm_quant": "RMS norm and rounding to e4m3 with one-byte scales",
    "linear": "block-FP8 linear layers",
    "bf16_linear": "products with bf16 weights: compressors, the indexer's weights, the vocabulary",
    "rope": "rotary position embedding and its inverse",
    "kv_store": "packed key-value records into pages",
    "compressor": "compressed key-value entries with their running state",
    "indexer": "index logits over paged keys",
    "topk": "the k best entries of each query, as cache slots",
    "sparse_mla": "attention over window and selected records with sink",
    "output_projection": "grouped output projection",
    "routing": "experts of each token, weights and token lists",
    "moe": "the chosen experts and the shared one",
    "sampling": "the next token from its logits",
}
OPS = tuple(SUMMARIES)


def spec(op: str) -> OpSpec:
    """The SPEC of one op; ValueError names those that exist. Errors while importing it propagate."""
    if op not in SUMMARIES:
        raise ValueError(f"no op {op!r}; there are {', '.join(OPS)}")
    if not (Path(__file__).parent / op / "spec.py").is_file():
        exact = ErrorBudget(0, 0, "the reference is its own measure")
        return OpSpec(op, SUMMARIES[op], (Impl(REFERENCE),), (), exact, False, "not claimed")
    found: OpSpec = importlib.import_module(f"wellhead.ops.{op}.spec").SPEC
    if found.name != op:
        raise ValueError(f"ops/{op}/spec.py names its op {found.name!r}; expected {op!r}")
    return found


def specs() -> tuple[OpSpec, ...]:
    """All of them."""
    return tuple(spec(op) for op in OPS)
