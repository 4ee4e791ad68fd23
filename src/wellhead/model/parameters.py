"""The weights as the reference implementation holds them: official names, fp32, experts stacked.

E4M3 and FP4 values times power-of-two scales are exact in fp32 (and in bf16), so nothing is lost by unpacking.
Experts of a small model are unpacked once; those of a large one stay as stored and are unpacked when chosen,
eight times smaller in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from wellhead.formats import block_fp8, mxfp4
from wellhead.model.config import ModelConfig
from wellhead.model.cut import Cut, cut, take
from wellhead.model.split import Split
from wellhead.model.weights import check_table

UNPACKED_BYTES = 4 << 30
Named = dict[str, torch.Tensor]

_EXPERT = re.compile(r"(.*\.ffn\.experts)\.(\d+)\.(w[123])")


def load_parameters(
    tensors: Iterable[tuple[str, torch.Tensor]],
    config: ModelConfig,
    *,
    with_mtp: bool,
    unpacked_bytes: int = UNPACKED_BYTES,
    split: Split | None = None,
) -> Named:
    """Checkpoint tensors (name, value), a weight and its scale in any order, to fp32 by name without
    ".weight".

    Experts e of a layer become one tensor `<layer>.ffn.experts.w1` [E, m, d] (w2 [E, d, m], w3 [E, m, d]); where
    all of them together would take more than `unpacked_bytes` in fp32 it holds the stored codes, and
    `<layer>.ffn.experts.w1.scale` their scales.
    `tid2eid` stays integer. `mtp.*` is dropped unless asked for. With a split, only the rank's part of each tensor and
    its experts are kept. ValueError where the model cannot be split so, for a scale without its weight or the reverse;
    CheckpointError for a hash table that names an expert that does not exist.
    """
    split = split or Split()
    split.check(config)
    named: Named = {}
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    mine, width = split.expert_rows(config), split.expert_width(config)
    count, inner = mine.stop - mine.start, width.stop - width.start
    elements = 3 * count * inner * config.hidden_size * config.num_hidden_layers
    keep_packed = 4 * elements > unpacked_bytes
    for name, value in tensors:
        if name.startswith("mtp.") and not with_mtp:
            continue
        base, _, kind = name.rpartition(".")
        part = cut(base if kind in ("weight", "scale") else name, config, split)
        if part is None:
            continue
        if kind == "scale" or (kind == "weight" and _is_packed(value)):
            pair = waiting.setdefault(base, {})
            pair[kind] = value
            if len(pair) == 2:
                del waiting[base]
                weight, scale = _take_pair(pair["weight"], pair["scale"], part)
                match = _EXPERT.fullmatch(base)
                if match is None:
                    named[base] = _dequantize(weight, scale)
                    continue
                stacked, index = f"{match[1]}.{match[3]}", int(match[2]) - mine.start
                if keep_packed:
                    _stack(named, stacked, index, weight, count)
                    _stack(named, f"{stacked}.scale", index, scale, count)
                else:
                    _stack(named, stacked, index, _dequantize(weight, scale), count)
        else:
            if kind == "tid2eid":
                check_table(name, value, config)
            value = take(value, part)
            plain = value if value.dtype == torch.int64 else value.float()
            named[base if kind == "weight" else name] = plain
    if waiting:
        base, pair = next(iter(waiting.items()))
        missing = "scale" if "weight" in pair else "weight"
        raise ValueError(f"tensor {base}.{missing} is missing ({len(waiting)} incomplete pairs); download it again")
    return named


def _is_packed(value: torch.Tensor) -> bool:
    return value.dtype in (torch.float8_e4m3fn, torch.int8, torch.uint8)


def _take_pair(weight: torch.Tensor, scale: torch.Tensor, part: Cut) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of the codes, and of the scales beside it."""
    if weight.dtype == torch.float8_e4m3fn:
        return take(weight, part), take(scale, part, block_fp8.BLOCK, block_fp8.BLOCK)
    return take(weight, part, columns=2), take(scale, part, columns=mxfp4.BLOCK)


def _dequantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if weight.dtype == torch.float8_e4m3fn:
        return block_fp8.dequantize_weight(weight, scale)
    return mxfp4.dequantize(weight, scale)


def _stack(named: Named, name: str, index: int, value: torch.Tensor, count: int) -> None:
    if name not in named:
        named[name] = value.new_empty(count, *value.shape)
    named[name][index] = value
