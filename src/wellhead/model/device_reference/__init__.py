"""Ops of the device model in torch: each reference behind the functions and plans of its op's kernels.

They compute on the device, allocate and may synchronise with the host, so no graph holds them. A plan made here runs as
the one of the op's `api` does, whose docstrings say what goes in; the mathematics is the op's `reference`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from wellhead.model.device_reference import attention, experts, mixing, products

REFERENCES: dict[str, Any] = {
    "addresses": attention.Addresses,
    "hyper_connection": mixing.HyperConnection,
    "norm_quant": SimpleNamespace(plan=products.NormQuant),
    "linear": SimpleNamespace(plan=products.Linear),
    "bf16_linear": SimpleNamespace(plan=products.Bf16Linear),
    "rope": SimpleNamespace(plan=products.Rope),
    "kv_store": SimpleNamespace(plan=attention.Store),
    "compressor": SimpleNamespace(plan_decode=attention.plan_decode, plan_prefill=attention.Prefill),
    "indexer": attention.IndexLogits,
    "topk": attention.TopK,
    "sparse_mla": attention.SparseMla,
    "output_projection": SimpleNamespace(plan=products.OutputProjection),
    "routing": experts.Routings,
    "moe": experts.Experts,
}
"""op -> a namespace with the functions of `ops.<op>.api` that a workspace calls."""


def reference_of(op: str) -> Any:
    """The op's functions in torch; NotImplementedError names the ops that have them."""
    if op not in REFERENCES:
        raise NotImplementedError(f"--impl {op}=reference: on a device there is one for {', '.join(REFERENCES)}")
    return REFERENCES[op]
