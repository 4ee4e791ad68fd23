"""Random checkpoints in the official formats, and a configuration small enough for any machine."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from wellhead.formats import block_fp8, mxfp4, ue8m0
from wellhead.model.config import ARCHITECTURE, MODEL_TYPE, ModelConfig
from wellhead.model.tensors import TensorSpec, expected_tensors

_TINY: dict[str, Any] = {
    "architectures": [ARCHITECTURE],
    "model_type": MODEL_TYPE,
    "vocab_size": 512,
    "hidden_size": 256,
    "num_hidden_layers": 5,
    "num_nextn_predict_layers": 1,
    "num_hash_layers": 2,
    "compress_ratios": [0, 4, 128, 4, 0, 0],
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 256,
    "o_groups": 2,
    "o_lora_rank": 128,
    "index_n_heads": 8,
    "index_head_dim": 128,
    "index_topk": 64,
    "sliding_window": 128,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "max_position_embeddings": 1048576,
    "hc_mult": 4,
    "hc_eps": 1e-6,
    "hc_sinkhorn_iters": 20,
    "moe_intermediate_size": 256,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "expert_dtype": "fp4",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


def tiny_config_dict(**overrides: Any) -> dict[str, Any]:
    """A fresh `config.json` dict with every layer kind, hash and routed experts and one MTP layer.

    A sequence of a few hundred tokens reaches each path: index_topk is 64 entries, 256 tokens of a C4 layer.
    """
    return copy.deepcopy(_TINY) | overrides


def random_checkpoint(config: ModelConfig, seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (official name, tensor) for all tensors of `config`, in the dtypes `weights.iter_tensors` yields.

    Matrices are normal with variance 1 / inputs (activations stay of order one), quantised by `formats`.
    A tensor depends on `seed`, its name and shape only.
    """
    specs = expected_tensors(config)
    for spec in specs:
        # torch's CPU generator keeps the low 32 bits of a seed
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {spec.name}".encode()))
        if spec.dtype in ("I8", "F8_E4M3"):
            scale_spec = next(specs)
            weight, scale = _quantized(spec, generator)
            yield spec.name, weight
            yield scale_spec.name, ue8m0.decode(scale) if scale_spec.dtype == "F32" else scale
        elif spec.dtype == "I64":
            yield spec.name, _expert_table(spec, config.n_routed_experts, generator)
        else:
            dtype = torch.bfloat16 if spec.dtype == "BF16" else torch.float32
            yield spec.name, _plain(spec, generator).to(dtype)


def _quantized(spec: TensorSpec, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = spec.shape
    if spec.dtype == "I8":
        return mxfp4.quantize(_normal((rows, 2 * cols), generator))
    return block_fp8.quantize_weight(_normal((rows, cols), generator))


def _plain(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(spec.shape, generator=generator)
    match spec.name.rpartition(".")[2].rpartition("_")[2]:
        case "scale":  # of a hyper-connection's mixing weights
            return 0.1 + 0.9 * torch.rand(spec.shape, generator=generator)
        case "base":
            return 0.1 * noise + _identity_mixing(spec.shape[0])
        case "bias":
            return 0.05 * noise
        case "sink" | "ape":
            return 0.5 * noise
    if spec.name == "embed.weight":
        return noise
    return 1 + 0.1 * noise if len(spec.shape) == 1 else noise / math.sqrt(spec.shape[1])


def _identity_mixing(rows: int, streams: int = 4) -> torch.Tensor:
    """Base with the diagonal of the row-major streams x streams matrix raised; zeros for the head."""
    base = torch.zeros(rows)
    if rows > streams:
        base[2 * streams :] = 2 * torch.eye(streams).flatten()
    return base


def _expert_table(spec: TensorSpec, experts: int, generator: torch.Generator) -> torch.Tensor:
    tokens, chosen = spec.shape
    return torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :chosen].contiguous()


def _normal(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) / math.sqrt(shape[1])
