"""One small case of every op, drawn on any device: what the interpreter can run and a graph can hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from wellhead.ops.addresses.spec import make as addresses
from wellhead.ops.bf16_linear.spec import make as bf16_linear
from wellhead.ops.compressor.drawing import make as compressor
from wellhead.ops.hyper_connection.spec import make as hyper_connection
from wellhead.ops.indexer.spec import make as indexer
from wellhead.ops.kv_store.spec import make as kv_store
from wellhead.ops.linear.spec import make as linear
from wellhead.ops.moe.spec import make as moe
from wellhead.ops.norm_quant.spec import make as norm_quant
from wellhead.ops.output_projection.spec import make as output_projection
from wellhead.ops.rope.spec import make as rope
from wellhead.ops.routing.spec import make as routing
from wellhead.ops.sampling.spec import make as sampling
from wellhead.ops.sparse_mla.spec import make as sparse_mla
from wellhead.ops.topk.spec import make as topk

SMALL: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "addresses": partial(addresses, 3, 5),
    "hyper_connection": hyper_connection({"tokens": 3, "n": 4, "d": 256}),
    "norm_quant": partial(norm_quant, 3, 384),
    "linear": partial(linear, 3, 200, 384),
    "bf16_linear": partial(bf16_linear, 3, (128, 72), 384),
    "rope": partial(rope, 3, 5, 128),
    "kv_store": partial(kv_store, 3, 5, 64),
    "compressor": partial(compressor, 3, 4, 512, 64),
    "indexer": partial(indexer, "fp8", 3, 2, 8, 256),
    "topk": partial(topk, 3, 9216, 64),
    "sparse_mla": partial(sparse_mla, 3, 16, 64, 64),
    "output_projection": partial(output_projection, 3, 4, 2, 128),
    "routing": partial(routing, 3, 256, 16, 2),
    "moe": partial(moe, 3, 256, 256, 6, 2),
    "sampling": partial(sampling, 3, 2048, "top-k and top-p"),
}
