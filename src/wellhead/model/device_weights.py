"""The weights of one rank as the kernels read them: a tree of records, every leaf a contiguous tensor.

Sizes: d hidden, q query rank, H heads, G output groups, N = o_lora_rank, E experts, m expert width, K experts a token,
V vocabulary; H, G, V, m and E are this rank's share (`split`). `device_layout` allocates the tree, `stream` fills it
from a checkpoint, `dummy` at random. Nothing here is converted but by exact rules: E4M3 and E2M1 codes and UE8M0
bytes are those of the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from wellhead.model.split import Split
from wellhead.ops.moe.packed import PackedWeights

# a field that covers other fields' memory
JOINED = {"joined": True}


@dataclass(frozen=True)
class Fp8Weight:
    """A block-FP8 matrix: weight E4M3 [N, K], scale u8 (UE8M0) [ceil(N/128), K/128]."""

    weight: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class HyperWeights:
    """One site of the hyper-connections: fn fp32 [24, 4d], base fp32 [24], scale fp32 [3]; the head's are [4, 4d],
    [4], [1]. norm bf16 [d] is the RMS weight of what the site hands out (attn_norm, ffn_norm, or the final norm).
    """

    fn: torch.Tensor
    base: torch.Tensor
    scale: torch.Tensor
    norm: torch.Tensor


@dataclass(frozen=True)
class CompressorWeights:
    """kv_gate bf16 [2W, d]: rows of wkv, then of wgate, so that one product gives (kv, gate) as `ops.compressor` reads
    them; ape fp32 [ratio, W], norm bf16 [D]. W is 2D for ratio 4 and D for 128; D is 512, or 128 in the indexer.
    """

    kv_gate: torch.Tensor
    ape: torch.Tensor
    norm: torch.Tensor


@dataclass(frozen=True)
class IndexerWeights:
    """Whole on every rank: wq_b [index heads * 128, q], weights_proj bf16 [index heads, d], compressor of D = 128."""

    wq_b: Fp8Weight
    weights_proj: torch.Tensor
    compressor: CompressorWeights


@dataclass(frozen=True)
class AttentionWeights:
    """wq_a_kv [q + 512, d]: rows of wq_a, then of wkv (one launch); q_norm bf16 [q], kv_norm bf16 [512];
    wq_b [H 512, q]; sink fp32 [H]; wo_a [G N, H/G 512]; wo_b [d, G N] (a rank's product is a partial sum).

    compressor: ratio 4 and 128. indexer: ratio 4. side: bf16 [S, d], every bf16 product of the attention input in one,
    as one launch may take it: rows of compressor.kv_gate, indexer.compressor.kv_gate, indexer.weights_proj, which are
    views of it; None for ratio 0.
    """

    wq_a_kv: Fp8Weight
    q_norm: torch.Tensor
    kv_norm: torch.Tensor
    wq_b: Fp8Weight
    sink: torch.Tensor
    wo_a: Fp8Weight
    wo_b: Fp8Weight
    compressor: CompressorWeights | None
    indexer: IndexerWeights | None
    side: torch.Tensor | None = field(metadata=JOINED)


@dataclass(frozen=True)
class MoeWeights:
    """gate bf16 [all experts, d], whole on every rank; bias fp32 [all experts] of a routed layer or table i32
    [whole vocabulary, K] of a hash layer, the other None. shared_w13 [2m, d]: rows of w1, then of w3 (not in turn);
    shared_w2 [d, m]: the shared expert is split by width in every case, its product is a partial sum.
    Experts of this rank are first_expert .. first_expert + E - 1; scales of FP8 ones are fp32, as stored.
    """

    gate: torch.Tensor
    bias: torch.Tensor | None
    table: torch.Tensor | None
    experts: PackedWeights
    shared_w13: Fp8Weight
    shared_w2: Fp8Weight
    first_expert: int


@dataclass(frozen=True)
class LayerWeights:
    """One block: ratio 0, 4 or 128; each site's mixing, attention and experts."""

    ratio: int
    attn_hyper: HyperWeights
    attention: AttentionWeights
    ffn_hyper: HyperWeights
    moe: MoeWeights


@dataclass(frozen=True)
class HeadWeights:
    """hyper: the head's contraction, with the output norm; vocabulary bf16 [V, d], rows first_token .. of it."""

    hyper: HyperWeights
    vocabulary: torch.Tensor


@dataclass(frozen=True)
class MtpWeights:
    """An MTP module: e_proj and h_proj [d, d] and enorm, hnorm bf16 [d], whole on every rank; its block; its own
    contraction and norm. Embedding and vocabulary are the model's.
    """

    e_proj: Fp8Weight
    h_proj: Fp8Weight
    enorm: torch.Tensor
    hnorm: torch.Tensor
    layer: LayerWeights
    head_hyper: HyperWeights


@dataclass(frozen=True)
class ModelWeights:
    """One rank's model: embedding bf16 [V, d], ids first_token .. first_token + V - 1 of the vocabulary."""

    split: Split
    first_token: int
    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    head: HeadWeights
    mtp: tuple[MtpWeights, ...]

    @property
    def nbytes(self) -> int:
        return nbytes(self)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(dotted path, tensor) of each tensor that owns its bytes, such as ("layers.3.moe.experts.w13", ...)."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, tuple):
        for index, part in enumerate(tree):
            yield from leaves(part, f"{path}.{index}" if path else str(index))
    elif dataclasses.is_dataclass(tree):
        for item in dataclasses.fields(tree):
            if not item.metadata.get("joined"):
                yield from leaves(getattr(tree, item.name), f"{path}.{item.name}" if path else item.name)


def nbytes(tree: Any) -> int:
    """Bytes of all tensors of a tree or of one of its records."""
    return sum(tensor.nbytes for _, tensor in leaves(tree))
