"""The model configuration as a frozen record; `config_file` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODEL_TYPE = "deepseek_v4"
ARCHITECTURE = "DeepseekV4ForCausalLM"
RATIOS = (0, 4, 128)
"""Tokens per compressed entry: a layer's queries attend besides the window nothing, chosen entries, or all of them."""


class ConfigError(ValueError):
    """A model configuration this package cannot run; the message lists every problem found."""


@dataclass(frozen=True)
class YarnScaling:
    """YaRN as the checkpoint states it; this model never scales cos and sin themselves."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class ModelConfig:
    """Field names and meanings are those of the published `config.json`.

    `compress_ratios` covers main and MTP layers. `num_nextn_predict_layers` is 0 for block-drafting (DSpark)
    checkpoints: their `mtp.*` stages are another architecture and stay unread. `scale_dtype` is how block-FP8
    scales are stored: "ue8m0", or "fp32" with FP8 experts.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    sliding_window: int
    compress_ratios: tuple[int, ...]
    compress_rope_theta: float
    rope_theta: float
    rope_scaling: YarnScaling
    max_position_embeddings: int
    hc_mult: int
    hc_eps: float
    hc_sinkhorn_iters: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float
    swiglu_limit: float
    num_hash_layers: int
    num_nextn_predict_layers: int
    vocab_size: int
    rms_norm_eps: float
    bos_token_id: int
    eos_token_id: int
    expert_dtype: Literal["fp4", "fp8"]
    scale_dtype: Literal["ue8m0", "fp32"]
