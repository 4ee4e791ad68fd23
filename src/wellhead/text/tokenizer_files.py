"""The tokenizer and the configuration files beside it, read and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

PAST_IDS = 1 << 32  # ids at which the library raises instead of knowing none


class TokenizerFileError(ValueError):
    """A tokenizer file is missing, damaged, or not of the kind this package reads."""


def read_backend(source: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json."""
    expected = (
        "expected the tokenizer.json of the checkpoint (Hugging Face tokenizers format); download it again"
    )
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerFileError(f"{source}: cannot read it ({error}); {expected}") from error
    if text.startswith("version https://git-lfs"):
        raise TokenizerFileError(
            f"{source}: is a Git LFS pointer, not the file; run `git lfs pull` in the folder"
        )
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerFileError(f"{source}: not a tokenizer ({error}); {expected}") from error
    if type(backend.decoder).__name__ != "ByteLevel":
        found = type(backend.decoder).__name__
        raise TokenizerFileError(
            f"{source}: decoder {found}; expected ByteLevel, the only kind this package reads"
        )
    backend.no_truncation()
    backend.no_padding()
    return backend


def read_special_ids(folder: Path, backend: tokenizers.Tokenizer) -> tuple[frozenset[int], int | None]:
    """End ids, and the begin id where a file names one; see ``Tokenizer.from_folder``."""
    eos, bos = _ids_of(backend, folder, "eos"), _ids_of(backend, folder, "bos")
    if not eos:
        raise TokenizerFileError(
            f"{folder}: no end-of-sequence token found; expected `eos_token` in tokenizer_config.json or "
            "`eos_token_id` in generation_config.json; copy these files from the checkpoint"
        )
    if len(bos) > 1:
        raise TokenizerFileError(
            f"{folder}: the configuration files name different begin tokens, ids {sorted(bos)}; "
            "expected one; make `bos_token` in tokenizer_config.json and `bos_token_id` agree"
        )
    return frozenset(eos), next(iter(bos), None)


def _read_json(source: Path) -> dict[str, Any]:
    """The JSON object in an optional file; an absent file is an empty object."""
    if not source.exists():
        return {}
    try:
        value = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerFileError(
            f"{source}: not JSON ({error}); expected a JSON object; download it again"
        ) from error
    if not isinstance(value, dict):
        raise TokenizerFileError(
            f"{source}: holds a {type(value).__name__}; expected a JSON object; download it again"
        )
    return value


def _ids_of(backend: tokenizers.Tokenizer, folder: Path, kind: str) -> set[int]:
    """Ids of the "eos" or "bos" tokens that the configuration files name."""
    found: set[int] = set()
    name = _read_json(folder / "tokenizer_config.json").get(f"{kind}_token")
    if isinstance(name, dict):
        name = name.get("content")
    if name is not None:
        index = backend.token_to_id(name) if isinstance(name, str) else None
        if index is None:
            raise TokenizerFileError(
                f"{folder / 'tokenizer_config.json'}: {kind}_token {name!r} is not in tokenizer.json; "
                "expected a token of that file; take both files from the same checkpoint"
            )
        found.add(index)

    key = f"{kind}_token_id"
    where = "generation_config.json"
    value = _read_json(folder / where).get(key)
    if value is None:
        where = "config.json"
        value = _read_json(folder / where).get(key)
    listed: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    for index in listed:
        if type(index) is not int or not 0 <= index < PAST_IDS or backend.id_to_token(index) is None:
            raise TokenizerFileError(
                f"{folder / where}: {key} {index!r} is not an id of tokenizer.json; "
                "expected an integer id of that file; take both files from the same checkpoint"
            )
        found.add(index)
    return found
