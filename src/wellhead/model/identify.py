"""What a checkpoint is, from its config.json and, where files are there, their index and headers; weights are not read.

Imports the standard library only: `wellhead doctor` asks when everything else is broken. A family that this package
does not run is named all the same, with what to use instead.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellhead.model.config import ARCHITECTURE, MODEL_TYPE
from wellhead.model.published import published_config, published_names
from wellhead.model.shard import INDEX_FILE, StoredTensor, read_header

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "n_routed_experts", "moe_intermediate_size")
_EXPERT = re.compile(r"experts\.\d+\.(?:w[123]|gate_proj|up_proj|down_proj)\.?(weight|scale|weight_scale\w*)?$")
_OFFICIAL = "use the official weights, deepseek-ai/DeepSeek-V4-Flash or deepseek-ai/DeepSeek-V4-Pro"


@dataclass(frozen=True)
class Identity:
    """`kind` is a stable word, `title` for people. `runs` says whether this package computes it at all, on some device;
    `why` then names limits, else the reason against it, and `fix` what to do. `evidence`: what was believed.
    """

    kind: str
    title: str
    runs: bool
    why: str = ""
    fix: str = ""
    evidence: tuple[str, ...] = ()


def identify(raw: Mapping[str, Any], folder: Path | None = None) -> Identity:
    """The checkpoint with that config.json, whose files, as far as there are some, lie in `folder`."""
    told = f"model_type {raw.get('model_type')!r}, architectures {raw.get('architectures')!r}"
    other = _other_family(raw, told)
    if other is not None:
        return other
    name = _published(raw)
    quantization = raw.get("quantization_config")
    quantization = quantization if isinstance(quantization, Mapping) else {}
    algorithm = quantization.get("moe_quant_algo", quantization.get("quant_algo"))
    method = quantization.get("quant_method")
    experts = raw.get("expert_dtype", quantization.get("expert_dtype", "fp4"))
    stored = _stored_experts(folder)
    evidence = (told, f"experts in the configuration: {algorithm or experts}", *((stored[1],) if stored else ()))
    if "vision_n_layers" in raw:
        why = "its vision tower is not implemented"
        return Identity("v4-vision", f"{name} Vision", False, why, _OFFICIAL, evidence)
    if str(algorithm).upper().startswith("NVFP4") or (stored and stored[0] == "nvfp4"):
        why = "a third party's NVFP4 re-quantisation (blocks of 16); kernels and reference read MXFP4 (blocks of 32)"
        return Identity("v4-nvfp4", f"{name}, re-quantised to NVFP4", False, why, _OFFICIAL, evidence)
    if algorithm or method != "fp8":
        why = f"quantised by {algorithm or method!r}, which is not how it was published"
        return Identity("v4-requantised", f"{name}, re-quantised", False, why, _OFFICIAL, evidence)
    if stored and stored[0] not in (experts, "unknown"):
        why = f"config.json says {experts} experts, the files hold {stored[0]}"
        return Identity("v4-mixed", f"{name}, files unlike their config.json", False, why, _OFFICIAL, evidence)
    drafting = _stored_experts(folder, "mtp.") if stored else None
    if stored and drafting and drafting[0] != stored[0]:
        why = f"the drafting layer's experts are {drafting[0]}, the model's {stored[0]}"
        return Identity("v4-mixed", f"{name}, a drafting layer of another format", False, why, _OFFICIAL, evidence)
    if experts == "fp8":
        why = "FP8 experts: computed by the reference on the CPU only so far"
        return Identity("v4-base", f"{name}-Base (FP8 experts)", True, why, f"for a card {_OFFICIAL}", evidence)
    if "dspark_block_size" in raw:
        why = "its block-drafting (DSpark) stages stay unread: no --speculative-tokens"
        return Identity("v4-dspark", f"{name} with DSpark drafting", True, why, "", evidence)
    return Identity("v4", f"{name} (FP4 experts, FP8 rest)", True, "", "", evidence)


def _other_family(raw: Mapping[str, Any], told: str) -> Identity | None:
    """What is not V4; None for V4."""
    kind = str(raw.get("model_type"))
    names = raw.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if kind == MODEL_TYPE and architecture in ("", ARCHITECTURE):
        return None
    if kind == "None" and "n_layers" in raw:
        why = "the reference code's own configuration (inference/config.json)"
        return Identity("reference-config", "V4's inference folder", False, why, "name the folder above it", (told,))
    for family, title, words in (
        ("v4.1", "V4.1", ("deepseekv41", "deepseek_v41", "deepseek_v4_1")),
        ("v3.2", "V3.2", ("deepseekv32", "deepseek_v32")),
        ("v3", "V3 or R1", ("deepseekv3", "deepseek_v3")),
    ):
        if any(word in f"{kind} {architecture}".lower() for word in words):
            why = f"{title} is another architecture, not implemented"
            return Identity(family, title, False, why, _OFFICIAL, (told,))
    why = "not a model that this package runs"
    return Identity("other", f"something else ({kind})", False, why, _OFFICIAL, (told,))


def _published(raw: Mapping[str, Any]) -> str:
    """The name of a published model of these sizes, else a word with them."""
    for name in published_names():
        known = published_config(name)
        if all(raw.get(size) == known[size] for size in _SIZES):
            return name.replace("v", "V").replace("-f", "-F").replace("-p", "-P")
    return f"V4 architecture of other sizes ({raw.get('num_hidden_layers')} layers of {raw.get('hidden_size')})"


def _stored_experts(folder: Path | None, module: str = "layers.") -> tuple[str, str] | None:
    """("fp4", "fp8", "nvfp4" or "unknown", the tensor believed) of the files' main layers, or of the drafting layer
    "mtp."; None where there are none to read.
    """
    found = _expert_tensors(folder, module) if folder is not None else {}
    weight = next((t for name, t in found.items() if "scale" not in name), None)
    scale = next((t for name, t in found.items() if "scale" in name and not name.endswith("scale_2")), None)
    if weight is None:
        return None
    said = f"{weight.name}: {weight.dtype} {list(weight.shape)}, "
    said += "no scale beside it" if scale is None else f"scale {scale.dtype} {list(scale.shape)}"
    packed = weight.dtype in ("I8", "U8", "F4")
    if scale is not None and packed and scale.dtype == "F8_E4M3":
        return "nvfp4", said
    if scale is not None and packed and scale.dtype in ("F8_E8M0", "U8"):
        return ("nvfp4" if weight.shape[-1] * 2 == 16 * scale.shape[-1] else "fp4"), said
    return ("fp8" if weight.dtype == "F8_E4M3" else "unknown"), said


def _expert_tensors(folder: Path, module: str) -> dict[str, StoredTensor]:
    """Weight and scales of one routed expert's product, by name; whatever cannot be read is not there."""

    def wanted(name: str) -> bool:
        return name.removeprefix("model.").startswith(module) and _EXPERT.search(name) is not None

    try:
        index = folder / INDEX_FILE
        files = sorted(folder.glob("*.safetensors"))
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
            of_experts = {str(file) for name, file in names.items() if wanted(str(name))}
            files = [folder / file for file in sorted(of_experts) if re.fullmatch(r"[\w.-]+", file)]
        for file in itertools.islice((file for file in files if file.is_file()), 2):
            tensors = {name: t for name, t in read_header(file).items() if wanted(name)}
            if tensors:
                stem = re.sub(r"\.(weight|scale|weight_scale\w*)$", "", min(tensors))
                return {name: t for name, t in tensors.items() if name == stem or name.startswith(f"{stem}.")}
    except (OSError, ValueError, AttributeError):
        return {}
    return {}
