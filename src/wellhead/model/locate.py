"""From what a user names as the model to a folder on this machine."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

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
        return _download(model)
    raise CheckpointError(f"{str(model)!r}: no such folder, and no Hugging Face id of the form owner/name")


def _embedded() -> Path:
    folder = Path(str(resources.files("wellhead") / "data" / "tiny"))
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: the embedded checkpoint is missing; reinstall wellhead or name a model"
        )
    return folder


def _download(hub_id: str) -> Path:
    # a heavy import that only this branch needs
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:  # not found, gated, offline, no space
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{hub_id}: no such folder, and the Hugging Face hub does not give it ({type(error).__name__}: "
            f"{reason}); check the name, go online or name a folder"
        ) from error
