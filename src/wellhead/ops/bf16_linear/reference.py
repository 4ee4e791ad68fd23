"""Products with weights that are bf16 in the checkpoint: compressors, the indexer's weights, the vocabulary."""

from __future__ import annotations

from wellhead.ops.linear.reference import product as product
