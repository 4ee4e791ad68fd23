"""The model configuration as a frozen record, with what follows from it; `config_file` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

MODEL_TYPE = "deepseek_v4"
ARCHITECTURE = "DeepseekV4ForCausalLM"


class ConfigError(ValueError):
    """A model configuration this package cannot run; the message lists every problem found."""


class LayerKind(StrEnum):
    """What a layer's queries attend besides the window: nothing, chosen C4 entries, or all C128 entries."""

    WINDOW = "window"
    C4 = "c4"
    C128 = "c128"

    @property
    def ratio(self) -> int:
        """Tokens per compressed entry, 0 for none (the value in `compress_ratios`)."""
        return {"window": 0, "c4": 4, "c128": 128}[self]


KIND_OF_RATIO = {kind.ratio: kind for kind in LayerKind}


@dataclass(frozen=True)
class YarnScaling:
    """YaRN as the checkpoint states it; this model never scales cos and sin themselves."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class RopeParameters:
    """One layer kind's rotation: base `theta`, the last `dim` dims, `yarn` None for plain frequencies."""

    dim: int
    theta: float
    yarn: YarnScaling | None


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

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each main layer."""
        return tuple(KIND_OF_RATIO[r] for r in self.compress_ratios[: self.num_hidden_layers])

    @property
    def nope_head_dim(self) -> int:
        return self.head_dim - self.qk_rope_head_dim

    def rope(self, kind: LayerKind) -> RopeParameters:
        """Plain `rope_theta` for window layers and MTP, YaRN over `compress_rope_theta` for the others."""
        if kind is LayerKind.WINDOW:
            return RopeParameters(self.qk_rope_head_dim, self.rope_theta, None)
        return RopeParameters(self.qk_rope_head_dim, self.compress_rope_theta, self.rope_scaling)
