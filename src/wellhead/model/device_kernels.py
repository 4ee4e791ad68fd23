"""The functions that plan every op of the device model, by the implementation that was chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from wellhead.dispatch.spec import REFERENCE
from wellhead.model.device_reference import reference_of
from wellhead.ops.addresses import api as addresses
from wellhead.ops.bf16_linear import api as bf16_linear
from wellhead.ops.compressor import api as compressor
from wellhead.ops.compressor import prefill as compressor_prefill
from wellhead.ops.hyper_connection import api as hyper_connection
from wellhead.ops.indexer import api as indexer
from wellhead.ops.kv_store import api as kv_store
from wellhead.ops.linear import api as linear
from wellhead.ops.moe import prefill_api as moe
from wellhead.ops.moe.shared_api import plan_shared
from wellhead.ops.norm_quant import api as norm_quant
from wellhead.ops.output_projection import api as output_projection
from wellhead.ops.rope import api as rope
from wellhead.ops.routing import api as routing
from wellhead.ops.sparse_mla import api as sparse_mla
from wellhead.ops.topk import api as topk


def _experts(product: moe.Product) -> SimpleNamespace:
    return SimpleNamespace(plan=moe.plan, plan_shared=plan_shared, product=product)


KERNELS: dict[str, dict[str, Any]] = {
    "addresses": {"triton": addresses},
    "hyper_connection": {"triton": hyper_connection},
    "norm_quant": {"triton": norm_quant},
    "linear": {"triton": linear},
    "bf16_linear": {"triton": bf16_linear},
    "rope": {"triton": rope},
    "kv_store": {"triton": kv_store},
    "compressor": {
        "triton": SimpleNamespace(
            plan_decode=compressor.plan_decode, plan_prefill=compressor_prefill.plan_prefill
        )
    },
    "indexer": {"triton": indexer},
    "topk": {"triton": topk},
    "sparse_mla": {"triton": sparse_mla},
    "output_projection": {"triton": output_projection},
    "routing": {"triton": routing},
    "moe": {
        "triton": _experts(moe.W4A8_BF16), "triton-w4a8": _experts(moe.W4A8), "triton-w4a16": _experts(moe.W4A16)
    },
}  # fmt: skip
"""op -> implementation -> a module or namespace with the functions of the op's `api`."""


def functions_of(op: str, impl: str) -> Any:
    """What a workspace calls for an op. NotImplementedError for an implementation that this model does not use."""
    if impl == REFERENCE:
        return reference_of(op)
    if impl not in KERNELS[op]:
        known = ", ".join([*KERNELS[op], REFERENCE])
        raise NotImplementedError(f"--impl {op}={impl}: the model on a device runs {known}")
    return KERNELS[op][impl]
