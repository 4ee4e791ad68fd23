"""Read and check the published `config.json`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wellhead.model.config import (
    ARCHITECTURE,
    MODEL_TYPE,
    RATIOS,
    ConfigError,
    ModelConfig,
    YarnScaling,
)

CONFIG_FILE = "config.json"

# Fields with one supported value; those that shapes are computed from must be present.
_FIXED: dict[str, object] = {
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "index_head_dim": 128,
    "num_key_value_heads": 1,
    "hc_mult": 4,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
}
_FIXED_SHAPES = ("head_dim", "qk_rope_head_dim", "index_head_dim", "hc_mult")
_QUANTIZATION: dict[str, object] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def load_config(source: Mapping[str, Any] | str | Path) -> ModelConfig:
    """The `config.json` given as its dict, its path, or the folder that holds it; ConfigError if unfit."""
    if isinstance(source, Mapping):
        return _parse(source, "config")
    path = Path(source)
    path = path / CONFIG_FILE if path.is_dir() else path
    return _parse(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ConfigError when the file is missing, no JSON or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a checkpoint folder holds {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _parse(raw: Mapping[str, Any], where: str) -> ModelConfig:
    _check_model(raw, where)
    problems: list[str] = []
    for name, expected in _FIXED.items():
        if (name in raw or name in _FIXED_SHAPES) and raw.get(name) != expected:
            problems.append(f"{name} is {raw.get(name, 'missing')!r}, expected {expected!r}")
    expert_dtype = _expert_dtype(raw, problems)
    values: dict[str, Any] = {
        "compress_ratios": _ratios(raw, problems),
        "rope_scaling": _yarn(raw, problems),
        "expert_dtype": expert_dtype,
        "scale_dtype": "fp32" if expert_dtype == "fp8" else "ue8m0",
    }
    for field in dataclasses.fields(ModelConfig):
        if field.name not in values:
            values[field.name] = _number(raw, field.name, field.type == "int", problems)
    if "dspark_block_size" in raw:
        values["num_nextn_predict_layers"] = 0
    if not problems:
        config = ModelConfig(**values)
        problems = _inconsistencies(config, drafts="dspark_block_size" in raw)
    if problems:
        raise ConfigError(f"{where}: " + "; ".join(problems))
    return config


def _check_model(raw: Mapping[str, Any], where: str) -> None:
    found = raw.get("model_type")
    if found != MODEL_TYPE:
        hint = ""
        if found is None and "n_layers" in raw:
            hint = "; this is the reference code's config, use the config.json at the top of the checkpoint"
        raise ConfigError(f"{where}: model_type is {found!r}, expected {MODEL_TYPE!r}{hint}")
    architectures = raw.get("architectures", [ARCHITECTURE])
    if architectures != [ARCHITECTURE]:
        raise ConfigError(f"{where}: architectures is {architectures!r}, expected {[ARCHITECTURE]!r}")
    if "vision_n_layers" in raw:
        raise ConfigError(f"{where}: the vision variant of {MODEL_TYPE} is not supported, expected a text model")


def _expert_dtype(raw: Mapping[str, Any], problems: list[str]) -> str:
    quantization = raw.get("quantization_config")
    if not isinstance(quantization, Mapping):
        problems.append(f"quantization_config is {quantization!r}, expected the published FP8 one {_QUANTIZATION}")
        quantization = _QUANTIZATION
    for name in ("moe_quant_algo", "quant_algo"):
        if name in quantization:
            problems.append(f"quantization {name} {quantization[name]!r} is not supported, expected official weights")
    for name, expected in _QUANTIZATION.items():
        if quantization.get(name) != expected:
            problems.append(f"quantization_config.{name} is {quantization.get(name)!r}, expected {expected!r}")
    expert_dtype = raw.get("expert_dtype", quantization.get("expert_dtype", "fp4"))
    if expert_dtype not in ("fp4", "fp8"):
        problems.append(f"expert_dtype is {expert_dtype!r}, expected 'fp4' or 'fp8' (absent means 'fp4')")
    if expert_dtype == "fp4" and quantization.get("scale_fmt", "ue8m0") != "ue8m0":
        problems.append(f"quantization_config.scale_fmt is {quantization['scale_fmt']!r}, expected 'ue8m0'")
    return str(expert_dtype)


def _number(raw: Mapping[str, Any], name: str, integer: bool, problems: list[str]) -> float | None:
    value = raw.get(name)
    may_be_zero = name.endswith("token_id") or name in ("num_hash_layers", "num_nextn_predict_layers")
    kind = (int,) if integer else (int, float)
    # isfinite raises for an integer beyond every float, as repr does for one of thousands of digits
    if isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        if value > 0 or (value == 0 and may_be_zero):
            return value if integer else float(value)
    least = "0 or more" if may_be_zero else "above 0"
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        shown, least = f"an integer of {value.bit_length()} bits", f"{least} within the range of floats"
    else:
        shown = repr(raw.get(name, "missing"))
    problems.append(f"{name} is {shown}, expected {'an integer' if integer else 'a number'} {least}")
    return None


def _ratios(raw: Mapping[str, Any], problems: list[str]) -> tuple[int, ...]:
    ratios = raw.get("compress_ratios")
    if not isinstance(ratios, list) or any(type(r) is not int or r not in RATIOS for r in ratios):
        problems.append(f"compress_ratios is {ratios!r}, expected a list of {list(RATIOS)}")
        return ()
    return tuple(ratios)


def _yarn(raw: Mapping[str, Any], problems: list[str]) -> YarnScaling | None:
    scaling = raw.get("rope_scaling")
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, Mapping) else None
    if not isinstance(scaling, Mapping) or kind != "yarn":
        problems.append(f"rope_scaling is {scaling!r}, expected type 'yarn' with its factor and betas")
        return None
    found: list[str] = []
    values = {f.name: _number(scaling, f.name, f.type == "int", found) for f in dataclasses.fields(YarnScaling)}
    problems += [f"rope_scaling.{problem}" for problem in found]
    return YarnScaling(**values)  # type: ignore[arg-type]  # None only beside a recorded problem


def _inconsistencies(config: ModelConfig, drafts: bool) -> list[str]:
    problems = []
    main, mtp = config.num_hidden_layers, config.num_nextn_predict_layers
    found = len(config.compress_ratios)
    if found < main or (found != main + mtp and not drafts):
        problems.append(
            f"compress_ratios has {found} entries, expected {main + mtp}: num_hidden_layers {main} "
            f"+ num_nextn_predict_layers {mtp}"
        )
    elif any(config.compress_ratios[main:]):
        problems.append(f"compress_ratios of MTP layers are {config.compress_ratios[main:]}, expected 0")
    if config.num_attention_heads % config.o_groups:
        problems.append(
            f"num_attention_heads {config.num_attention_heads} is no multiple of o_groups {config.o_groups}"
        )
    if config.num_experts_per_tok > config.n_routed_experts:
        problems.append(
            f"num_experts_per_tok {config.num_experts_per_tok} exceeds n_routed_experts {config.n_routed_experts}"
        )
    if config.num_hash_layers > main:
        problems.append(f"num_hash_layers {config.num_hash_layers} exceeds num_hidden_layers {main}")
    inputs = {
        "hidden_size": config.hidden_size,
        "q_lora_rank": config.q_lora_rank,
        "moe_intermediate_size": config.moe_intermediate_size,
        "o_groups * o_lora_rank": config.o_groups * config.o_lora_rank,
    }
    # activations are quantised in whole groups of 128 along these dimensions
    problems += [f"{name} {size} is no multiple of 128" for name, size in inputs.items() if size % 128]
    return problems
