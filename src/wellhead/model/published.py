"""The published configurations, shipped with the package, and shorter models of the same widths."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from wellhead.model.config_file import read_json


def published_names() -> list[str]:
    """What `published_config` takes: such as "v4-flash"."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def published_config(name: str) -> dict[str, Any]:
    """A fresh `config.json` dict of a published model; ValueError for an unknown name."""
    if name not in published_names():
        raise ValueError(f"configuration {name!r} is not shipped, expected one of {', '.join(published_names())}")
    return read_json(_folder() / f"{name}.json")


def first_layers(raw: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The same model with its first `layers` main layers (and all MTP layers): each keeps its kind.

    ValueError unless there are that many.
    """
    known = raw["num_hidden_layers"]
    if not 1 <= layers <= known:
        raise ValueError(f"{layers} layers of {known}: expected 1 to {known}")
    shorter = copy.deepcopy(dict(raw))
    ratios = shorter["compress_ratios"]
    shorter["num_hidden_layers"] = layers
    shorter["compress_ratios"] = ratios[:layers] + ratios[known:]
    shorter["num_hash_layers"] = min(shorter["num_hash_layers"], layers)
    return shorter


def _folder() -> Path:
    return Path(str(resources.files("wellhead") / "data" / "configs"))
