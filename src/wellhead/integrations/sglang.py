"""SGLang runs our ops: the plugin behind the entry point `sglang.srt.plugins`, and what it replaces.

WELLHEAD_OPS names the groups (`GROUPS`, or "all"); unset, nothing is touched. SGLang logs a plugin's exception and goes
on with its own kernels, so whatever goes wrong here leaves as SystemExit, the one thing that it does not swallow. Until
`register` has begun, only the standard library is imported, for the same reason.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import sys
from collections.abc import Sequence
from typing import Any

from wellhead import environment
from wellhead.integrations.targets import Moved, Row, Target, check, installed, outside, resolve, table

GROUPS = ("mla", "indexer", "moe", "mhc", "linear")
FIRST, BELOW = "0.5.23", "0.5.24"  # the releases that the comparisons ran against

_MLA = "sglang.kernels.ops.attention.flash_mla_sm120"
_MODEL = "sglang.srt.models.deepseek_v4"
_BACKEND = "sglang.srt.layers.attention.deepseek_v4_backend"
_INDEXER = "sglang.srt.layers.attention.dsv4.indexer"
_TOPK = "sglang.kernels.ops.attention.dsv4.topk"
_FP8 = "sglang.srt.layers.quantization.fp8"
_FP8_UTILS = "sglang.srt.layers.quantization.fp8_utils"
_CUTLASS = "sglang.srt.layers.quantization.mxfp4_flashinfer_cutlass_moe"
_RUNNER = "sglang.srt.layers.moe.moe_runner"
_BOUNDARY = "sglang.srt.models.deepseek_common.amd.deepseek_v4_fused_mhc"
_OURS = "wellhead.integrations.sglang_calls:"
_LOGITS = "q_fp8, kvcache_fp8, weight, seq_lens, page_table, deep_gemm_metadata, max_seq_len, clean_logits="

TARGETS: tuple[Target, ...] = (
    Target(
        "mla", _MLA, "flash_mla_with_kvcache_sm120", "**kwargs", f"{_OURS}flash_mla",
        caller=f"{_BACKEND}:DeepseekV4AttnBackend._forward_attention",
        keywords=(
            "q", "k_cache", "head_dim_v", "softmax_scale", "indices", "topk_length", "attn_sink", "extra_k_cache",
            "extra_indices_in_kvcache", "extra_topk_length",
        ),
    ),
    Target("mla", _MODEL, "MqaAttentionBase._kernel_num_heads", "self, num_tokens", f"{_OURS}kernel_num_heads"),
    Target("indexer", _INDEXER, "fp8_paged_mqa_logits_torch_sm120", _LOGITS, f"{_OURS}paged_logits"),
    Target(
        "indexer", _TOPK, "topk_transform_paged",
        "scores, seq_lens, page_tables, out_page_indices, page_size, out_raw_indices=", f"{_OURS}topk_paged",
        bound=(f"{_INDEXER}:topk_transform_paged",),
    ),
    Target(
        "moe", _FP8, "Fp8Config.get_quant_method", "self, layer, prefix", f"{_OURS}get_quant_method", around=True
    ),
    Target("mhc", _MODEL, "DeepseekV4DecoderLayerBase.hc_pre",
           "self, x, hc_fn, hc_scale, hc_base, norm=, forward_batch=", f"{_OURS}hc_pre"),
    Target("mhc", _MODEL, "DeepseekV4DecoderLayerBase.hc_post", "self, x, residual, post, comb", f"{_OURS}hc_post"),
    Target(
        "mhc", _BOUNDARY, "apply_mhc_post_pre_boundary",
        "layer_input, residual, post, comb, hc_fn, hc_scale, hc_base, hc_mult, rms_eps, hc_eps, hc_post_mult, "
        "sinkhorn_iters, norm_weight, norm_eps, *, fn_transpose", f"{_OURS}post_pre",
    ),
    Target(
        "linear", _FP8_UTILS, "dispatch_w8a8_block_fp8_linear", "weight_block_size=, act_scale_ue8m0=",
        f"{_OURS}dispatch_linear", around=True, bound=(f"{_FP8}:dispatch_w8a8_block_fp8_linear",),
    ),
    Target("linear", _FP8, "Fp8LinearMethod.process_weights_after_loading", "self, layer", f"{_OURS}renew_scales",
           around=True),
)  # fmt: skip
"""What is replaced."""

_METHOD = "Mxfp4FlashinferCutlassMoEMethod"
LEANED_ON: tuple[Target, ...] = (
    Target("moe", f"{_RUNNER}.runner", "register_moe_runner_core", "backend_name, factory", ""),
    Target("moe", f"{_RUNNER}.base", "DispatchMoeRunnerCore.run_from_dispatch",
           "self, dispatch_output, quant_info, runner_config, hooks=", ""),
    Target("moe", _CUTLASS, f"{_METHOD}.create_weights",
           "self, layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype, **extra_weight_attrs",
           ""),
    Target("moe", _CUTLASS, f"{_METHOD}.create_moe_runner", "self, layer, moe_runner_config", ""),
    Target("moe", _CUTLASS, f"{_METHOD}.get_moe_routing_method_type", "self, layer, requested_method", ""),
    Target("moe", _CUTLASS, f"{_METHOD}.apply", "self, layer, dispatch_output", ""),
    Target("moe", _FP8, "Fp8MoEMethod.create_weights",
           "self, layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype, with_bias=, "
           "**extra_weight_attrs", ""),
    Target("linear", _FP8_UTILS, "cutlass_w8a8_block_fp8_linear_with_fallback",
           "input, weight, block_size, weight_scale, input_scale=, bias=", ""),
)  # fmt: skip
"""What is called, or whose shape ours has; nothing there is replaced."""

SETTINGS: dict[str, dict[str, bool]] = {
    "indexer": {
        "SGLANG_OPT_USE_TILELANG_INDEXER": False, "SGLANG_FP8_PAGED_MQA_LOGITS_TORCH": True,
        "SGLANG_OPT_USE_TOPK_V2": False,
    },
}  # fmt: skip
"""SGLang's own variables that route a call to a target; set where they are unset."""

ONLY_SM120 = ("mla", "indexer")  # SGLang asks whether the card is SM120 before it calls these targets


def register() -> None:
    """The entry point: replace what WELLHEAD_OPS asks for, verify it, print the table. SystemExit where it cannot."""
    try:
        environment.check()
        asked, tolerant = environment.engine_ops(GROUPS), environment.goes_on()
        if not asked:
            logging.getLogger(__name__).info("WELLHEAD_OPS is not set: SGLang keeps all of its own kernels")
            return
        rows, problems = place(asked)
    except Exception as error:
        raise SystemExit(f"wellhead: the SGLang plugin failed: {type(error).__name__}: {error}") from error
    if multiprocessing.parent_process() is None or problems:
        print(f"wellhead in SGLang {installed('sglang')}\n{table(rows)}", file=sys.stderr, flush=True)
    if problems and not tolerant:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise SystemExit(
            f"wellhead: WELLHEAD_OPS={','.join(asked)} was asked for and cannot be placed:\n{listed}\n"
            "Leave the op out of WELLHEAD_OPS, or set WELLHEAD_ON_MISMATCH=go-on to run SGLang's kernel in its place."
        )


def place(asked: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Hook every target of the groups `asked` that keeps its contract; (the table, reasons against the others)."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    refused = refusals(asked)
    problems = [outside("sglang", installed("sglang"), FIRST, BELOW)]
    problems += [f"{op}: {why}" for op, why in refused.items()]
    placed = [op for op in asked if op not in refused]
    for op in placed:
        _set(op)
        if op == "moe":
            importlib.import_module("wellhead.integrations.sglang_experts").register_runner()
    stock = {target.path: check(target) for target in TARGETS if target.op in placed}
    for target in TARGETS:
        if target.path in stock:
            kind = HookType.AROUND if target.around else HookType.REPLACE
            HookRegistry.register(target.path, resolve(*target.ours.split(":")), kind)
    HookRegistry.apply_hooks()  # now, so that a hook that did not take ends this process and not an answer
    rows = []
    for target in TARGETS:
        why = refused.get(target.op, "") if target.op in asked else "not in WELLHEAD_OPS"
        if target.path in stock:
            why = _not_taken(target, stock[target.path], HookRegistry)
            problems += [f"{target.op}: {why}"] if why else []
        rows.append(target.row(why))
    return rows, [problem for problem in problems if problem]


def refusals(ops: Sequence[str]) -> dict[str, str]:
    """{op: why it cannot be placed in the installed SGLang, on this card, under these settings}."""
    envs, platform = resolve("sglang.srt.environ", "envs"), resolve("sglang.srt.runtime_context", "get_platform")()
    found: dict[str, str] = {}
    for op in ops:
        reasons = []
        for target in (*TARGETS, *LEANED_ON):
            try:
                if target.op == op:
                    check(target)
            except Moved as moved:
                reasons.append(str(moved))
        if op in ONLY_SM120 and not platform.is_sm120:
            reasons.append("the card is not SM120, and SGLang calls another kernel there")
        for name, wanted in SETTINGS.get(op, {}).items():
            field = getattr(envs, name, None)
            if field is None:
                reasons.append(f"SGLang no longer has {name}")
            elif field.is_set() and bool(field.get()) != wanted:
                reasons.append(f"{name} is set to {field.get()}, which routes around this op; unset it")
        if reasons:
            found[op] = "; ".join(dict.fromkeys(reasons))
    return found


def _set(op: str) -> None:
    envs = resolve("sglang.srt.environ", "envs")
    for name, wanted in SETTINGS.get(op, {}).items():
        getattr(envs, name).set(wanted)


def _not_taken(target: Target, stock: Any, registry: Any) -> str:
    """Why the hook of a target did not take, "" if it did."""
    if target.path not in registry._patched:
        return f"{target.path}: SGLang did not apply the hook; its log has the reason"
    if len(registry._hooks[target.path]) != 1:
        return f"{target.path}: another plugin hooks it too"
    here = resolve(target.module, target.name)
    if here is stock:
        return f"{target.path}: still SGLang's own after the hooks were applied"
    for name in target.bound:
        if resolve(*name.split(":")) is not here:
            return f"{name.replace(':', '.')}: still bound to SGLang's own {target.name}"
    return ""


def report() -> list[Row]:
    """A row for each target: what would stand there in the installed version, or why not. Replaces nothing."""
    version = installed("sglang")
    if version is None:
        return [Row(op, "-", "-", "-", "sglang is not installed") for op in GROUPS]
    untested = outside("sglang", version, FIRST, BELOW)
    try:
        refused = refusals(GROUPS)
    except Moved as moved:
        refused = dict.fromkeys(GROUPS, str(moved))
    return [target.row("; ".join(part for part in (untested, refused.get(target.op)) if part)) for target in TARGETS]
