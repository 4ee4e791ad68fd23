"""transformers runs our sparse MLA and our MXFP4 experts: `load(folder)` for a checkpoint, `use(model)` for a model.

Attention, its mask and the experts are registered under the name "wellhead" by transformers' own interfaces. Records
are packed at every call, since transformers caches them as bf16; the linear layers' products stay transformers' own.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch

from wellhead.formats import kv_record, mxfp4
from wellhead.integrations import calls
from wellhead.integrations.targets import Moved, Row, Target, check, installed, outside
from wellhead.ops.moe import layout
from wellhead.ops.moe.packed import PackedWeights

NAME = "wellhead"
FIRST, BELOW = "5.17.0", "5.24.0"  # the releases that the comparisons ran against
PAGE = 64
MULTIPLE = 64  # columns of a list of slots

_MODELING = "transformers.models.deepseek_v4.modeling_deepseek_v4"
TARGETS: tuple[Target, ...] = (
    Target(
        "mla", _MODELING, "eager_attention_forward",
        "module, query, key, value, attention_mask, scaling, dropout=, **kwargs",
        "wellhead.integrations.transformers:attention",
    ),
    Target("mla", "transformers.masking_utils", "AttentionMaskInterface.register", "cls, key, value", ""),
    Target("mla", "transformers.modeling_utils", "AttentionInterface.register", "cls, key, value", ""),
    Target(
        "moe", _MODELING, "DeepseekV4Experts.forward", "self, hidden_states, top_k_index, top_k_weights",
        "wellhead.integrations.transformers:experts",
    ),
    Target("moe", "transformers.integrations.moe", "ExpertsInterface.register", "cls, key, value", ""),
)  # fmt: skip
"""What is stood in for, where `ours` is given, and what is called."""


def register() -> None:
    """Register attention, mask and experts as "wellhead"; RuntimeError names what moved in the installed version."""
    refused = refusals()
    if refused:
        raise RuntimeError("wellhead does not fit the installed transformers: " + "; ".join(refused.values()))
    from transformers.integrations.moe import ExpertsInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)  # without one the compressor's choice would be dropped
    ExpertsInterface.register(NAME, experts)


def use(model: Any) -> Any:
    """`model` with our attention and experts, verified; bf16 weights, unpacked ("dequantize") if the checkpoint's are
    not.
    """
    register()
    model.set_attn_implementation(NAME)
    model.set_experts_implementation(NAME)
    for name in ("_attn_implementation", "_experts_implementation"):
        if getattr(model.config, name, None) != NAME:
            raise RuntimeError(f"transformers kept {name}={getattr(model.config, name, None)!r}; expected {NAME!r}")
    return model


def load(folder: str | Path, device: str | torch.device = "cpu", **options: Any) -> Any:
    """A causal language model from a checkpoint of the published format, its weights unpacked to bf16, on `device`.

    options: those of `AutoModelForCausalLM.from_pretrained`.
    """
    import transformers

    settings = getattr(transformers.AutoConfig.from_pretrained(folder, **options), "quantization_config", None)
    if settings is None:
        raise ValueError(f"{folder}: config.json has no quantization_config; load it with transformers, then `use` it")
    unpacked = transformers.FineGrainedFP8Config(**{
        key: value for key, value in settings.items() if key in ("weight_block_size", "scale_fmt", "expert_dtype")
    }, dequantize=True)  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=unpacked, **options
    )
    return use(model.to(device).eval())


def attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float, dropout: float = 0.0, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """query bf16 [B, H, S, 512], key = value bf16 [B, 1, N, 512], mask [B, 1, S, N], 0 where seen -> bf16 [B, S, H,
    512].
    """
    batch, heads, length, dim = query.shape
    if attention_mask is None:
        raise ValueError("attention_mask is None; expected one of [B, 1, S, N], as AttentionMaskInterface gives it")
    if dropout or key.shape[1] != 1 or dim != kv_record.DIM or query.dtype != torch.bfloat16:
        raise NotImplementedError(
            f"dropout={dropout}, {key.shape[1]} KV heads of {dim}, {query.dtype}; expected 0.0, one of "
            f"{kv_record.DIM}, torch.bfloat16"
        )
    count = key.shape[2]
    cache = kv_record.allocate_pages(-(-batch * count // PAGE), PAGE, device=query.device)
    slots = torch.arange(batch * count, device=query.device)
    kv_record.write(cache, slots, key.reshape(batch * count, dim))
    chosen = _slots(attention_mask.expand(batch, 1, length, count).squeeze(1), count)
    rows = query.transpose(1, 2).reshape(batch * length, heads, dim)
    found = calls.attend(rows, kv_record.flash_mla_view(cache), chosen, None, module.sinks.float(), scaling)
    return found.view(batch, length, heads, dim), None


def _slots(mask: torch.Tensor, count: int) -> torch.Tensor:
    """int32 [B * S, K]: the slots of the columns that are 0 in mask [B, S, N], ascending, -1 behind them."""
    seen = mask == 0
    if bool((~seen & (mask > torch.finfo(mask.dtype).min / 2)).any()):
        raise NotImplementedError("a mask that adds to scores; expected 0 where a record is seen and -inf elsewhere")
    column = torch.arange(count, device=mask.device).where(seen, count).sort(-1).values
    width = -(-max(1, int(seen.sum(-1).max())) // MULTIPLE) * MULTIPLE
    column = torch.nn.functional.pad(column[..., :width], (0, max(0, width - count)), value=count)
    first = torch.arange(len(mask), device=mask.device).view(-1, 1, 1) * count
    return torch.where(column < count, column + first, -1).flatten(0, 1).to(torch.int32)


def experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden_states bf16 [T, d], index [T, K] (the number of experts or more: none), weights [T, K] -> bf16 [T, d]."""
    ids = torch.where(top_k_index < self.num_experts, top_k_index, -1)
    return calls.experts(hidden_states, ids, top_k_weights, packed(self), float(self.limit))


_packed: weakref.WeakKeyDictionary[Any, tuple[list[tuple[int, int]], PackedWeights]] = weakref.WeakKeyDictionary()


def packed(layer: Any) -> PackedWeights:
    """The MXFP4 weights, the same values, of a layer whose unpacked ones are bf16; ValueError where they are not."""
    weights = layer.gate_up_proj, layer.down_proj
    version = [(weight.data_ptr(), weight._version) for weight in weights]
    known = _packed.get(layer)
    if known is None or known[0] != version:
        with torch.no_grad():
            gate, up = weights[0].chunk(2, dim=1)
            (w1, s1), (w3, s3), (w2, s2) = map(_pack, (gate, up, weights[1]))
        made = PackedWeights(layout.interleave(w1, w3), layout.interleave(s1, s3), w2, s2)
        known = _packed[layer] = (version, made)
    return known[1]


def _pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = mxfp4.quantize(weight.float())
    if not torch.equal(mxfp4.dequantize(codes, scale), weight.float()):
        raise ValueError(
            "the experts' weights are no MXFP4 values; load the checkpoint as it was published, unpacked, not changed"
        )
    return codes, scale


def refusals() -> dict[str, str]:
    """{op: why it cannot stand in the installed transformers}."""
    found: dict[str, str] = {}
    version = outside("transformers", installed("transformers"), FIRST, BELOW)
    for target in TARGETS:
        try:
            check(target)
        except Moved as moved:
            found[target.op] = "; ".join(part for part in (found.get(target.op), str(moved)) if part)
    if version is not None:
        found = {op: "; ".join(part for part in (version, found.get(op)) if part) for op in ("mla", "moe")}
    return found


def report() -> list[Row]:
    """A row for each function that ours stands in for, or why it cannot."""
    there = installed("transformers") is not None
    refused = refusals() if there else dict.fromkeys(("mla", "moe"), "transformers is not installed")
    return [target.row(refused.get(target.op, "")) for target in TARGETS if target.ours]
