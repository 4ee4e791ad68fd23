"""Tensor names: the official ones, and the transformers style that some re-uploads of the checkpoint use.

The official converter reads both. Stacked experts (`mlp.experts.gate_up_proj`) hold many official tensors and
have no official name.
"""

from __future__ import annotations

import re

TOP = {
    "embed.weight": "embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "norm.weight",
    "hc_head_fn": "hc_head.hc_fn",
    "hc_head_base": "hc_head.hc_base",
    "hc_head_scale": "hc_head.hc_scale",
}
_COMPRESSOR = {"wkv": "kv_proj", "wgate": "gate_proj", "ape": "position_bias", "norm": "kv_norm"}
_EXPERT = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
# inside a layer, without `.weight` or `.scale`; "#" stands for an expert number
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"hc_{s}_{p}": f"{s}_hc.{p}" for s in ("attn", "ffn") for p in ("fn", "base", "scale")},
    "attn.attn_sink": "self_attn.sinks",
    "attn.wq_a": "self_attn.q_a_proj",
    "attn.q_norm": "self_attn.q_a_norm",
    "attn.wq_b": "self_attn.q_b_proj",
    "attn.wkv": "self_attn.kv_proj",
    "attn.kv_norm": "self_attn.kv_norm",
    "attn.wo_a": "self_attn.o_a_proj",
    "attn.wo_b": "self_attn.o_b_proj",
    **{f"attn.compressor.{o}": f"self_attn.compressor.{t}" for o, t in _COMPRESSOR.items()},
    "attn.indexer.wq_b": "self_attn.compressor.indexer.q_b_proj",
    "attn.indexer.weights_proj": "self_attn.compressor.indexer.scorer.weights_proj",
    **{f"attn.indexer.compressor.{o}": f"self_attn.compressor.indexer.{t}" for o, t in _COMPRESSOR.items()},
    "ffn.gate": "mlp.gate",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    **{f"ffn.shared_experts.{o}": f"mlp.shared_experts.{t}" for o, t in _EXPERT.items()},
    **{f"ffn.experts.#.{o}": f"mlp.experts.#.{t}" for o, t in _EXPERT.items()},
    # only in MTP layers, which transformers does not read
    **{name: name for name in ("e_proj", "h_proj", "enorm", "hnorm", "norm")},
    **{f"hc_head_{part}": f"hc_head.hc_{part}" for part in ("fn", "base", "scale")},
}
_TOP_BACK = {transformers: official for official, transformers in TOP.items()}
_LAYER_BACK = {transformers: official for official, transformers in LAYER.items()}
_IN_LAYER = re.compile(r"(layers|mtp)\.(\d+)\.(.+)")
_LEAF = re.compile(r"\.(weight|scale|weight_scale_inv)$")
_STACKED = re.compile(r"((?:layers|mtp)\.\d+)\.(?:mlp|ffn)\.experts\.(?:gate_up_proj|down_proj|w13|w2)\b.*")
_EXPERT_NUMBER = re.compile(r"(?<=\bexperts\.)\d+(?=\.)")


def official_name(name: str) -> str | None:
    """The official name of a tensor named officially, in transformers style or half way; None if none."""
    name = name.removeprefix("model.")
    if name in TOP or name in _TOP_BACK:
        return _TOP_BACK.get(name, name)
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        return None
    stack, layer, inner = match.groups()
    number = _EXPERT_NUMBER.search(inner)
    inner = _EXPERT_NUMBER.sub("#", inner)
    # the whole name first: `attn_hc.scale` is a tensor, not the scale of a weight
    translated = _official_module(inner)
    if translated is None:
        leaf = _LEAF.search(inner)
        translated = _official_module(inner[: leaf.start()]) if leaf is not None else None
        if leaf is None or translated is None:
            return None
        translated += ".weight" if leaf.group(1) == "weight" else ".scale"
    if number is not None:
        translated = translated.replace("#", number.group())
    return f"{stack}.{layer}.{translated}"


def layer_of_stacked(name: str) -> str | None:
    """The layer, such as "layers.3", whose experts this tensor holds side by side; None if it does not."""
    match = _STACKED.fullmatch(name.removeprefix("model."))
    return match.group(1) if match is not None else None


def _official_module(module: str) -> str | None:
    if module in _LAYER_BACK:
        return _LAYER_BACK[module]
    module = module.replace("self_attn.", "attn.").replace("mlp.", "ffn.")
    module = module.replace("e_score_correction_bias", "bias")
    return module if module in LAYER else None
