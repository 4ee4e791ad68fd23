"""Ops of the device model in torch: each reference behind the functions and plans of its op's kernels.

They compute on the device, allocate and may synchronise with the host, so no graph holds them. A plan made here runs as
the one of the op's `api` does, whose docstrings say what goes in; the mathematics is the op's `reference`.
"""

from __future__ import annotations

from typing import Any

from wellhead.model.device_reference import attention, experts, mixing, products

REFERENCES: dict[str, Any] = {
    "addresses": attention.AllAddresses,
    "hyper_connection": mixing.HyperConnection,
    "norm_quant": products.NormQuants,
    "linear": products.Linears,
    "bf16_linear": products.Bf16Linears,
    "rope": products.Ropes,
    "kv_store": attention.Stores,
    "compressor": attention.Compressors,
    "indexer": attention.Indexers,
    "topk": attention.TopKs,
    "sparse_mla": attention.SparseMlas,
    "output_projection": products.OutputProjections,
    "routing": experts.Routings,
    "moe": experts.Experts,
}
"""op -> a namespace with the functions of `ops.<op>.api` that a workspace calls."""


def reference_of(op: str) -> Any:
    """The op's functions in torch; NotImplementedError names the ops that have them."""
    if op not in REFERENCES:
        raise NotImplementedError(f"--impl {op}=reference: on a device there is one for {', '.join(REFERENCES)}")
    return REFERENCES[op]
