"""The way from official names to transformers' that `model.names` goes back."""

from __future__ import annotations

import re

from wellhead.model.names import LAYER, TOP


def transformers_name(official: str) -> str:
    """The transformers-style name of an official one, experts unstacked; ValueError if not official."""
    if official in TOP:
        return TOP[official] if official == "head.weight" else f"model.{TOP[official]}"
    stack, layer, inner = [*official.split(".", 2), "", ""][:3]
    expert = re.search(r"(?<=\.experts\.)\d+", f".{inner}")
    general = re.sub(r"(?<=\.experts\.)\d+", "#", f".{inner}")[1:]
    module, _, leaf = general.rpartition(".")
    if general in LAYER:
        theirs = LAYER[general]
    elif module in LAYER and leaf in ("weight", "scale"):
        theirs = f"{LAYER[module]}.{'weight' if leaf == 'weight' else 'weight_scale_inv'}"
    else:
        raise ValueError(f"{official!r} is no official tensor name, expected such as 'layers.0.attn.wkv.weight'")
    return f"model.{stack}.{layer}.{theirs.replace('#', expert[0] if expert else '')}"
