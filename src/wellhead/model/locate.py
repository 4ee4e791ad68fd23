"""From what a user names as the model to a folder on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from wellhead.model.config_file import CONFIG_FILE, read_json
from wellhead.model.published import published_config, published_names
from wellhead.model.shard import CheckpointError

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
# weights, configuration and tokenizer; never code and never pickle
_HUB_FILES = ["*.safetensors", "*.json"]


def resolve_model(model: str | Path | None = None) -> Path:
    """The folder of `model`: a folder, a Hugging Face id, or None for the small checkpoint of this package.

    An id is downloaded into the hub's cache unless it is there. CheckpointError when nothing is found.
    """
    if model is None:
        return _embedded()
    folder = Path(model).expanduser()
    # an empty name would mean the current folder
    if folder.is_dir() and str(model).strip():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder}: a file, expected the folder that holds config.json and the weights")
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        # a heavy import that only this branch needs
        from huggingface_hub import snapshot_download

        return _from_hub(model, partial(snapshot_download, model, allow_patterns=_HUB_FILES))
    raise CheckpointError(f"{str(model)!r}: no such folder, and no Hugging Face id of the form owner/name")


@dataclass(frozen=True)
class NamedConfig:
    """A model's config.json: what it was asked for as, its fields, and the folder of its files if it has one here."""

    name: str
    raw: dict[str, Any]
    folder: Path | None


def find_config(model: str | None = None, *, online: bool = True) -> NamedConfig:
    """The configuration alone of: a folder, a config.json, the short name of a published model, a hub id (whose
    config.json alone is fetched, where `online`), or None for the small checkpoint of this package.

    CheckpointError or ConfigError when there is none.
    """
    if model is None:
        folder = _embedded()
        return NamedConfig("tiny", read_json(folder / CONFIG_FILE), folder)
    short = model.lower().removeprefix("deepseek-ai/deepseek-").removeprefix("deepseek-")
    path = Path(model).expanduser()
    if model.strip() and path.is_dir():
        return NamedConfig(path.resolve().name, read_json(path / CONFIG_FILE), path)
    if path.is_file():
        own = path.parent if path.name == CONFIG_FILE else None
        return NamedConfig(path.resolve().parent.name, read_json(path), own)
    if short in published_names():
        return NamedConfig(short, published_config(short), None)
    if _HUB_ID.fullmatch(model) and online:
        from huggingface_hub import hf_hub_download

        return NamedConfig(model, read_json(_from_hub(model, partial(hf_hub_download, model, CONFIG_FILE))), None)
    what = "and is not asked for online" if _HUB_ID.fullmatch(model) else "and no hub id of the form owner/name"
    raise CheckpointError(f"{model!r}: no such folder or config.json, not {' or '.join(published_names())}, {what}")


def _embedded() -> Path:
    folder = Path(str(resources.files("wellhead") / "data" / "tiny"))
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: the embedded checkpoint is missing; reinstall wellhead or name a model")
    return folder


def _from_hub(hub_id: str, get: Callable[[], str]) -> Path:
    """CheckpointError for what is not found, gated, offline, or without space."""
    try:
        return Path(get())
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{hub_id}: no such folder, and the Hugging Face hub does not give it ({type(error).__name__}: {reason}); "
            "check the name, go online or name a folder"
        ) from error
