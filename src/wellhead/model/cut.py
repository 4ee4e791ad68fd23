"""Which rows and columns of an official tensor a rank's part of the reference model has."""

from __future__ import annotations

import re

import torch

from wellhead.model.config import ModelConfig
from wellhead.model.split import Split

ALL = slice(None)
Cut = tuple[slice, slice]

_EXPERT = re.compile(r"(?:layers|mtp)\.\d+\.ffn\.experts\.(\d+)\.(w[123])")
_SHARED = re.compile(r"(?:layers|mtp)\.\d+\.ffn\.shared_experts\.(w[123])")
_ATTENTION = re.compile(r"(?:layers|mtp)\.\d+\.attn\.(wq_b|attn_sink|wo_a|wo_b)")


def cut(base: str, config: ModelConfig, split: Split) -> Cut | None:
    """(rows, columns), in elements, of the tensor named `base` (without .weight and .scale); None where the rank has
    none of it.
    """
    if split.world == 1:
        return ALL, ALL
    if base in ("embed", "head"):
        return split.part(config.vocab_size), ALL
    if match := _EXPERT.fullmatch(base):
        first = split.expert_rows(config)
        if not first.start <= int(match[1]) < first.stop:
            return None
        return _width(match[2], split.expert_width(config))
    if match := _SHARED.fullmatch(base):
        return _width(match[1], split.part(config.moe_intermediate_size * config.n_shared_experts))
    if match := _ATTENTION.fullmatch(base):
        heads, inner = config.num_attention_heads, config.o_groups * config.o_lora_rank
        return {
            "wq_b": (split.part(heads * config.head_dim), ALL),
            "attn_sink": (split.part(heads), ALL),
            "wo_a": (split.part(inner), ALL),
            "wo_b": (ALL, split.part(inner)),
        }[match[1]]
    return ALL, ALL


def take(tensor: torch.Tensor, part: Cut, rows: int = 1, columns: int = 1) -> torch.Tensor:
    """That part of a stored tensor of which one row stands for `rows` elements, one column for `columns`."""
    if part == (ALL, ALL):
        return tensor
    taken = tensor[_scaled(part[0], rows)]
    return taken if part[1] == ALL else taken[..., _scaled(part[1], columns)]


def _width(matrix: str, width: slice) -> Cut:
    return (ALL, width) if matrix == "w2" else (width, ALL)


def _scaled(part: slice, unit: int) -> slice:
    if part == ALL or unit == 1:
        return part
    if part.start % unit or part.stop % unit:
        raise ValueError(f"elements {part.start} .. {part.stop - 1} cut a block of {unit}")
    return slice(part.start // unit, part.stop // unit)
