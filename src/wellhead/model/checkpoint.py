"""Open a checkpoint folder: every tensor is checked by its safetensors header before memory is taken.

`locate.resolve_model` finds the folder, `weights` reads the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from wellhead.model.config import ConfigError, ModelConfig
from wellhead.model.config_file import load_config, read_json
from wellhead.model.locate import resolve_model
from wellhead.model.names import layer_of_stacked, official_name
from wellhead.model.shard import INDEX_FILE, CheckpointError, StoredTensor, read_header
from wellhead.model.tensors import TensorSpec, expected_tensors

__all__ = ["Checkpoint", "CheckpointError", "StoredTensor", "open_checkpoint", "resolve_model"]

SINGLE_FILE = "model.safetensors"
_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Checkpoint:
    """Checked: `tensors` by official name in model order; what else the files hold is not looked at."""

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all needed tensors."""
        return sum(stored.nbytes for stored in self.tensors.values())


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Check the checkpoint in `folder`; CheckpointError counts the problems and lists the first ten."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; name the folder that holds config.json and the weights")
    try:
        config = load_config(folder)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    problems: list[str] = []
    stored, unread = _stored_tensors(folder, problems)
    expected = {spec.name: spec for spec in expected_tensors(config)}
    found = _by_official_name(expected, stored, problems)
    tensors = {}
    unread |= _stacked_experts(expected, found, stored, problems)
    for spec in expected.values():
        tensor = found.get(spec.name)
        if tensor is None:
            if spec.name not in unread:
                problems.append(f"tensor {spec.name} is in no file, expected {spec.dtype} {list(spec.shape)}")
        elif (tensor.dtype, tensor.shape) != (spec.dtype, spec.shape):
            problems.append(
                f"{tensor.file.name}: tensor {tensor.name} is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {spec.dtype} {list(spec.shape)}; use the official weights of this config.json"
            )
        else:
            tensors[spec.name] = tensor
    if problems:
        raise CheckpointError(_report(folder, problems))
    return Checkpoint(folder, config, tensors)


def _report(folder: Path, problems: list[str]) -> str:
    lines = problems[:_SHOWN_PROBLEMS]
    if len(problems) > len(lines):
        lines = [*lines, f"... and {len(problems) - len(lines)} more"]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{folder}: checkpoint not usable, {count}:\n" + "\n".join(f"  {line}" for line in lines)


def _by_official_name(
    needed: Container[str], stored: Mapping[str, StoredTensor], problems: list[str]
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        official = name if name in needed else official_name(name)
        if official is None or official not in needed:
            continue
        if official in found:
            problems.append(f"tensors {found[official].name} and {name} are both {official}; keep one of them")
        else:
            found[official] = tensor
    return found


def _stacked_experts(
    expected: Mapping[str, TensorSpec], found: Container[str], stored: Mapping[str, StoredTensor], problems: list[str]
) -> set[str]:
    """Official names that are in no file because their layer's experts lie in one tensor: reported once, not each."""
    stacked = {layer: tensor for name, tensor in stored.items() if (layer := layer_of_stacked(name)) is not None}
    missing = [
        name for name in expected
        if name not in found and ".ffn.experts." in name and name.partition(".ffn.")[0] in stacked
    ]  # fmt: skip
    if missing:
        first, layers = expected[missing[0]], {name.partition(".ffn.")[0] for name in missing}
        tensor = stacked[first.name.partition(".ffn.")[0]]
        problems.append(
            f"{tensor.file.name}: experts are stacked in {len(layers)} layers (tensor {tensor.name} is {tensor.dtype} "
            f"{list(tensor.shape)}, as transformers' save_pretrained writes them), expected each expert's own, such as "
            f"{first.name} {first.dtype} {list(first.shape)}; use the official weights of this config.json"
        )
    return set(missing)


def _stored_tensors(folder: Path, problems: list[str]) -> tuple[dict[str, StoredTensor], set[str]]:
    """Tensors by stored name, and the official names already reported with their file."""
    if (folder / INDEX_FILE).is_file():
        return _indexed_tensors(folder, problems)
    if not (folder / SINGLE_FILE).is_file():
        raise CheckpointError(_no_weights(folder))
    try:
        return read_header(folder / SINGLE_FILE), set()
    except CheckpointError as error:
        raise CheckpointError(_report(folder, [str(error)])) from None


def _indexed_tensors(folder: Path, problems: list[str]) -> tuple[dict[str, StoredTensor], set[str]]:
    names_of_file = _read_index(folder)
    stored: dict[str, StoredTensor] = {}
    unread: set[str] = set()
    for file_name, names in sorted(names_of_file.items()):
        try:
            header = _read_shard(folder, file_name, len(names))
        except CheckpointError as error:
            problems.append(str(error))
            unread.update(official_name(name) or name for name in names)
            continue
        for name in names:
            if name in header:
                stored[name] = header[name]
            else:
                problems.append(
                    f"{file_name}: lacks tensor {name}, expected there by {INDEX_FILE}; download both again"
                )
                unread.add(official_name(name) or name)
    return stored, unread


def _read_index(folder: Path) -> dict[str, list[str]]:
    path = folder / INDEX_FILE
    try:
        weight_map = read_json(path).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is {type(weight_map).__name__}, expected names and their files")
    names_of_file: dict[str, list[str]] = {}
    for name, file_name in weight_map.items():
        names_of_file.setdefault(str(file_name), []).append(name)
    return names_of_file


def _read_shard(folder: Path, file_name: str, tensors: int) -> dict[str, StoredTensor]:
    if not re.fullmatch(r"[\w.-]+\.safetensors", file_name):
        raise CheckpointError(f"{INDEX_FILE}: names {file_name!r}, expected a .safetensors file of this folder")
    if not (folder / file_name).is_file():
        raise CheckpointError(f"{file_name}: no such file, expected with {tensors} tensors; download it")
    return read_header(folder / file_name)


def _no_weights(folder: Path) -> str:
    expected = f"{folder}: expected {INDEX_FILE} or {SINGLE_FILE}"
    suffixes = sorted({path.suffix for path in folder.iterdir()} & {".bin", ".pt", ".pth", ".ckpt", ".gguf"})
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        return f"{expected}, found {len(shards)} shards ({shards[0].name} ...) and no index; download the index"
    if suffixes:
        return f"{expected}, found {', '.join(suffixes)} files, never read here; get the safetensors files"
    return f"{expected}, found no weights; download them"
