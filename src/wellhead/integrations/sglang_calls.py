"""What stands in for SGLang's functions: its arguments in, our ops, its results out. `sglang.TARGETS` says which.

Layouts are SGLang's: window pages of 256 records read where they lie, compressed pages of 64 and 2, heads unpadded,
index keys in pages of 64. What an op does not do raises and names it; nothing is passed on to SGLang's kernel instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from wellhead.formats import index_key
from wellhead.integrations import calls
from wellhead.ops.hyper_connection.api import Site

POST_FACTOR = 2.0
BLOCK = [128, 128]


def flash_mla(
    *, q: torch.Tensor, k_cache: torch.Tensor, head_dim_v: int, softmax_scale: float | None, indices: torch.Tensor,
    topk_length: torch.Tensor | None, attn_sink: torch.Tensor, extra_k_cache: torch.Tensor | None = None,
    extra_indices_in_kvcache: torch.Tensor | None = None, extra_topk_length: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """(o bf16 [B, 1, H, 512], no log-sum-exp: the caller drops it). Rows are tokens, in decode and in prefill."""
    if q.dim() != 4 or q.shape[1] != 1 or head_dim_v != q.shape[-1]:
        raise NotImplementedError(f"q {tuple(q.shape)} with values {head_dim_v} wide; expected [B, 1, H, {head_dim_v}]")
    extra = None
    if extra_k_cache is not None:
        assert extra_indices_in_kvcache is not None
        extra = (extra_k_cache, extra_indices_in_kvcache.squeeze(1), extra_topk_length)
    scale = softmax_scale if softmax_scale is not None else q.shape[-1] ** -0.5
    sink = attn_sink[: q.shape[2]]
    return calls.attend(q.squeeze(1), k_cache, indices.squeeze(1), topk_length, sink, scale, extra).unsqueeze(1), None


def kernel_num_heads(self: Any, num_tokens: int) -> int:
    """This rank's heads: no kernel of ours wants them padded."""
    return int(self.n_local_heads)


def paged_logits(
    q_fp8: torch.Tensor, kvcache_fp8: torch.Tensor, weight: torch.Tensor, seq_lens: torch.Tensor,
    page_table: torch.Tensor, deep_gemm_metadata: Any, max_seq_len: int, clean_logits: bool = True,
) -> torch.Tensor:  # fmt: skip
    """fp32 [B, max_seq_len]; the top-k that follows looks at the first seq_lens of a row, the others hold anything."""
    if clean_logits:
        raise NotImplementedError("clean_logits=True; the indexer asks for logits whose tail nobody reads")
    lengths = seq_lens.flatten()
    return calls.index_logits(q_fp8.squeeze(1), weight, kvcache_fp8, lengths, page_table, max_seq_len)


def topk_paged(
    scores: torch.Tensor, seq_lens: torch.Tensor, page_tables: torch.Tensor, out_page_indices: torch.Tensor,
    page_size: int, out_raw_indices: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Slots in ascending order of entry, so that attention adds in an order that no score decides."""
    if page_size != index_key.PAGE_SIZE:
        raise NotImplementedError(f"page_size={page_size}; index keys lie in pages of {index_key.PAGE_SIZE}")
    calls.choose_slots(scores, seq_lens.flatten(), page_tables, out_page_indices, page_size, out_raw_indices)


def get_quant_method(original: Callable[..., Any], self: Any, layer: Any, prefix: str) -> Any:
    """Our method for MXFP4 experts, SGLang's own for every other layer."""
    from wellhead.integrations import sglang_experts

    found = sglang_experts.method_for(self, layer, prefix)
    return found if found is not None else original(self, layer, prefix)


def hc_pre(
    self: Any, x: torch.Tensor, hc_fn: torch.Tensor, hc_scale: torch.Tensor, hc_base: torch.Tensor, norm: Any = None,
    forward_batch: Any = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:  # fmt: skip
    """(input bf16 [T, d], post [T, 4], comb [T, 4, 4], whether `norm` is applied)."""
    weight = None if norm is None else norm.weight.data
    eps = None if norm is None else norm.variance_epsilon
    site, fused = _site(hc_fn, hc_base, hc_scale, weight, eps, self.rms_norm_eps)
    _, y, post, comb = calls.hyper_pre(x, site, self.rms_norm_eps, self.hc_eps, self.hc_sinkhorn_iters)
    return y, post, comb, fused


def hc_post(self: Any, x: torch.Tensor, residual: torch.Tensor, post: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
    return calls.hyper_post(x, residual, post.reshape(-1, residual.shape[1]), comb)


def post_pre(
    layer_input: torch.Tensor, residual: torch.Tensor, post: torch.Tensor, comb: torch.Tensor, hc_fn: torch.Tensor,
    hc_scale: torch.Tensor, hc_base: torch.Tensor, hc_mult: int, rms_eps: float, hc_eps: float, hc_post_mult: float,
    sinkhorn_iters: int, norm_weight: torch.Tensor | None, norm_eps: float | None, *, fn_transpose: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, bool]:  # fmt: skip
    """(streams, input, post, comb, whether the norm is applied): post of one sub-layer, then pre of the next."""
    if hc_post_mult != POST_FACTOR:
        raise NotImplementedError(f"hc_post_mult={hc_post_mult}; expected {POST_FACTOR}")
    site, fused = _site(hc_fn, hc_base, hc_scale, norm_weight, norm_eps, rms_eps)
    update = (layer_input, post.reshape(-1, hc_mult), comb)
    streams, y, post, comb = calls.hyper_pre(residual, site, rms_eps, hc_eps, sinkhorn_iters, update)
    return streams, y, post, comb, fused


def _site(
    fn: torch.Tensor, base: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor | None, eps: float | None,
    rms_eps: float,
) -> tuple[Site, bool]:  # fmt: skip
    """The site, with the norm where it is one that the op fuses: bf16 weights and the same eps."""
    fused = weight is not None and weight.dtype == torch.bfloat16 and eps == rms_eps
    return Site(fn.detach(), base.detach(), scale.detach(), weight if fused else None), fused


def dispatch_linear(
    original: Callable[..., Any], weight_block_size: list[int] | None = None, act_scale_ue8m0: bool = False
) -> Callable[..., Any]:
    """Our product for the block-FP8 weights with power-of-two scales; SGLang's own choice for other checkpoints."""
    if weight_block_size == BLOCK and act_scale_ue8m0:
        return block_fp8_linear
    return original(weight_block_size=weight_block_size, act_scale_ue8m0=act_scale_ue8m0)


def block_fp8_linear(
    input: torch.Tensor, weight: torch.Tensor, block_size: list[int], weight_scale: torch.Tensor,
    input_scale: torch.Tensor | None = None, bias: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """bf16 [..., N] of bf16 [..., K]: rows rounded to E4M3 with a power of two per 128, as the checkpoint asks."""
    if input_scale is not None or list(block_size) != BLOCK or input.dtype != torch.bfloat16:
        raise NotImplementedError(
            f"input {input.dtype}, input_scale {'given' if input_scale is not None else 'None'}, block_size "
            f"{block_size}; expected bf16 rows without scales and {BLOCK}. Leave linear out of WELLHEAD_OPS."
        )
    out = calls.linear(input.reshape(-1, input.shape[-1]), weight, scales_of(weight_scale))
    if bias is not None:
        out += bias
    return out.view(*input.shape[:-1], weight.shape[0])


def scales_of(weight_scale: torch.Tensor) -> torch.Tensor:
    """UE8M0 bytes of a layer's scales, made at their first use; `renew_scales` writes them again."""
    made: torch.Tensor | None = getattr(weight_scale, "_wellhead_scale", None)
    if made is None:
        made = calls.scale_bytes(weight_scale.detach())
        weight_scale._wellhead_scale = made  # type: ignore[attr-defined]
    return made


def renew_scales(original: Callable[..., None], self: Any, layer: Any) -> None:
    """After a layer's weights were loaded again: its bytes, in place, since captured graphs know their address."""
    original(self, layer)
    scale: Any = getattr(layer, "weight_scale_inv", None)
    if hasattr(scale, "_wellhead_scale"):
        scale._wellhead_scale.copy_(calls.scale_bytes(scale.detach()))
