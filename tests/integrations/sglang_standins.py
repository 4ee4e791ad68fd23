"""What of a V4 forward SGLang has in CUDA only, in torch, so that its model runs on a CPU around our ops.

Norms, rotations and stores, the compressor, the activation of the shared expert and the routing by token; none of it is
replaced on a card. The compressor remembers every token of one request instead of SGLang's rings.
"""

from __future__ import annotations

from typing import Any

import torch

from wellhead.formats import index_key, kv_record
from wellhead.ops.compressor.reference import pool
from wellhead.ops.indexer.reference import rotate as spread
from wellhead.ops.moe.reference import swiglu
from wellhead.ops.norm_quant.reference import rms_norm
from wellhead.ops.rope import reference as rope

_ROPE = "sglang.kernels.ops.attention.dsv4.norm_rope."

tokens: dict[int, dict[int, torch.Tensor]] = {}
"""Address of a compressed cache -> position -> (kv, score) fp32 of the token; emptied between requests."""


def turn(x: torch.Tensor, freqs_cis: torch.Tensor, positions: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    freqs = freqs_cis[positions.long()]
    return rope.rotate(x, freqs.real.float(), freqs.imag.float(), inverse=inverse)


def q_norm_rope(
    q_input: torch.Tensor, q_output: torch.Tensor, eps: float | None, freqs_cis: Any, positions: Any
) -> None:
    q_output.copy_(turn(q_input if eps is None else rms_norm(q_input, None, eps), freqs_cis, positions))


def rope_inplace(
    q: torch.Tensor, k: torch.Tensor | None, freqs_cis: Any, positions: Any, inverse: bool = False
) -> None:
    for x in (q, k):
        if x is not None:
            x.copy_(turn(x, freqs_cis, positions, inverse))


def norm_rope_inplace(kv: torch.Tensor, weight: torch.Tensor, eps: float, freq_cis: Any, positions: Any) -> None:
    kv.copy_(turn(rms_norm(kv, weight.to(kv.dtype), eps), freq_cis, positions))


def k_norm_rope_store(
    kv: torch.Tensor, kv_weight: torch.Tensor, eps: float, freqs_cis: Any, positions: Any, out_loc: torch.Tensor,
    kvcache: torch.Tensor, page_size: int, layout: Any = None, q: Any = None,
) -> None:  # fmt: skip
    row = turn(rms_norm(kv.contiguous(), kv_weight.to(kv.dtype), eps), freqs_cis, positions)
    kv_record.write(kvcache.view(torch.uint8), out_loc.long(), row)


def index_query(
    q_input: torch.Tensor, weight: torch.Tensor, weight_scale: float, freqs_cis: Any, positions: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = index_key.quantize_fp8(spread(turn(q_input, freqs_cis, positions)))
    return codes, (weight.float() * weight_scale * scale).unsqueeze(-1)


def compress(
    self: Any, *, kv_score_input: torch.Tensor, ape: torch.Tensor, head_dim: int, norm: Any, freqs_cis_cache: Any,
    kv_cache: torch.Tensor, is_indexer: bool, compress_ratio: int, out_loc: torch.Tensor, **rest: Any,
) -> None:  # fmt: skip
    """SGLang's scores are without `ape`, whose rows for ratio 4 are those of the block before, then of the block."""
    known, width = tokens.setdefault(kv_cache.data_ptr(), {}), kv_score_input.shape[-1] // 2
    ape = ape.float().view(-1, head_dim)
    if compress_ratio == 4:
        bias = torch.cat((torch.cat((ape[:4], ape[:4]), 1), torch.cat((ape[4:], ape[4:]), 1)))
    else:
        bias = ape
    for row, position in enumerate(self.forward_metadata.core_metadata.positions[: len(kv_score_input)].tolist()):
        known[position] = kv_score_input[row].float().clone()
        if (position + 1) % compress_ratio:
            continue
        nothing = torch.cat((torch.zeros(width), torch.full((width,), float("-inf"))))
        rows = torch.stack([known.get(at, nothing) for at in range(position + 1 - len(bias), position + 1)])
        entry = pool(rows[:, :width], rows[:, width:] + bias, compress_ratio)[None].bfloat16()
        entry = rms_norm(entry, norm.weight.to(entry.dtype), norm.variance_epsilon)
        entry = turn(entry, freqs_cis_cache, torch.tensor([position + 1 - compress_ratio]))
        slot = out_loc[row : row + 1].long()
        if is_indexer:
            index_key.write_fp8(kv_cache, slot, spread(entry))
        else:
            kv_record.write(kv_cache, slot, entry)


def silu_and_mul_clamp(input: torch.Tensor, output: torch.Tensor, swiglu_limit: float) -> None:
    output.copy_(swiglu(*input.chunk(2, -1), swiglu_limit))


def hash_topk(
    router_logits: torch.Tensor, input_ids: torch.Tensor, tid2eid: torch.Tensor, num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 1.0, scoring_func: str = "sqrtsoftplus",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    ids = tid2eid[input_ids.long()].int()
    weights = torch.nn.functional.softplus(router_logits.float()).sqrt().gather(1, ids.long())
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * routed_scaling_factor, ids


STANDINS = {
    f"{_ROPE}fused_q_norm_rope": q_norm_rope,
    f"{_ROPE}fused_rope_inplace": rope_inplace,
    f"{_ROPE}fused_norm_rope_inplace": norm_rope_inplace,
    f"{_ROPE}fused_k_norm_rope_flashmla": k_norm_rope_store,
    f"{_ROPE}fused_q_indexer_rope_hadamard_quant": index_query,
    "sglang.srt.layers.attention.dsv4.compressor_v2.CompressorBackendMixin._forward_compress_all_in_one": compress,
    "sglang.kernels.ops.activation.silu_and_mul_clamp.silu_and_mul_clamp": silu_and_mul_clamp,
    "sglang.kernels.ops.moe.dsv4.hash_topk": hash_topk,
}
