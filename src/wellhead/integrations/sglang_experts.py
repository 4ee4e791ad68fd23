"""MXFP4 experts as SGLang's objects: a method that owns the weights and a runner core that computes. Imports SGLang."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.moe.moe_runner.base import DispatchMoeRunnerCore, MoeRunnerConfig
from sglang.srt.layers.moe.moe_runner.runner import _CUSTOM_RUNNER_CORE_FACTORIES, MoeRunner, register_moe_runner_core
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.utils import get_moe_a2a_backend, get_moe_runner_backend, resolve_moe_runner_backend

from wellhead.integrations import calls
from wellhead.ops.moe import layout
from wellhead.ops.moe.packed import PackedWeights

NAME = "wellhead"
LEFT_OPEN = ("auto", "flashinfer_mxfp4", NAME)  # what SGLang chooses by itself for these experts


def register_runner() -> None:
    """Name our runner core; a second call changes nothing."""
    if NAME not in _CUSTOM_RUNNER_CORE_FACTORIES:
        register_moe_runner_core(NAME, RunnerCore)


def method_for(config: Any, layer: Any, prefix: str) -> ExpertsMethod | None:
    """Our method for a layer of MXFP4 experts of an `Fp8Config`, None for any other layer.

    SystemExit if the command line asks for another runner: both cannot be had.
    """
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
    from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod
    from sglang.srt.layers.quantization.utils import is_layer_skipped

    if not isinstance(layer, FusedMoE) or not config.is_fp4_experts or config.dequant_fp4_to_fp8:
        return None
    if is_layer_skipped(prefix, config.ignored_layers, fused_mapping=config.packed_modules_mapping):
        return None
    backend, exchange = get_moe_runner_backend().value, get_moe_a2a_backend().value
    if backend not in LEFT_OPEN or exchange != "none":
        raise SystemExit(
            f"wellhead: --moe-runner-backend {backend} and --moe-a2a-backend {exchange} are asked for, and "
            "WELLHEAD_OPS asks for moe; drop the options or leave moe out of WELLHEAD_OPS"
        )
    return ExpertsMethod(Fp8MoEMethod(config), prefix)


class ExpertsMethod:
    """SGLang's quantization method of a layer of MXFP4 experts; the weights are interleaved once, in place."""

    fuse_routed_scaling_factor_in_topk = True

    def __init__(self, fp8_method: Any, prefix: str):
        self.fp8, self.prefix = fp8_method, prefix

    def create_weights(
        self, layer: torch.nn.Module, num_experts: int, hidden_size: int, intermediate_size_per_partition: int,
        params_dtype: torch.dtype, **extra_weight_attrs: Any,
    ) -> None:  # fmt: skip
        self.fp8.create_weights(
            layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype,
            fp4_scale_dtype=torch.float8_e8m0fnu, **extra_weight_attrs,
        )  # fmt: skip

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: MoeRunnerConfig) -> None:
        self.moe_runner_config = moe_runner_config
        if moe_runner_config.layer is None:
            moe_runner_config.layer = layer
        self.runner = MoeRunner(resolve_moe_runner_backend(NAME), moe_runner_config)

    def get_moe_runner_backend(self, layer: torch.nn.Module) -> Any:
        return self.runner.runner_backend

    def get_moe_routing_method_type(self, layer: torch.nn.Module, requested_method: Any) -> Any:
        return requested_method

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Gate and up rows in turn, as the op reads them: [gate; up] of each expert in turn, one expert's copy at once.

        `Fp8MoEMethod` is not asked: what it does to these weights is for other runners.
        """
        for name in ("w13_weight", "w13_weight_scale_inv"):
            stacked = getattr(layer, name).data
            for expert in stacked.view(torch.uint8):
                gate, up = expert.chunk(2)
                expert.copy_(layout.interleave(gate, up))

    def apply(self, layer: torch.nn.Module, dispatch_output: Any) -> Any:
        packed = PackedWeights(
            *(
                getattr(layer, name).data.view(torch.uint8)
                for name in ("w13_weight", "w13_weight_scale_inv", "w2_weight", "w2_weight_scale_inv")
            )
        )
        return self.runner.run(dispatch_output, packed)


class RunnerCore(DispatchMoeRunnerCore):
    """Our experts behind SGLang's `MoeRunner`, over dispatched tokens with expert ids of this rank."""

    def __init__(self, config: MoeRunnerConfig):
        super().__init__(config)
        wrong = [
            name
            for name in ("apply_router_weight_on_input", "no_combine", "gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit")
            if getattr(config, name)
        ]
        if config.activation != "silu" or not config.is_gated or config.num_fused_shared_experts or wrong:
            raise NotImplementedError(
                f"experts with activation={config.activation}, is_gated={config.is_gated}, num_fused_shared_experts="
                f"{config.num_fused_shared_experts}, {', '.join(wrong) or 'nothing else'}; expected gated silu alone. "
                "Leave moe out of WELLHEAD_OPS."
            )
        self.limit = float("inf") if config.swiglu_limit is None else float(config.swiglu_limit)

    @property
    def runner_backend(self) -> Any:
        return resolve_moe_runner_backend(NAME)

    def run_from_dispatch(
        self, dispatch_output: Any, quant_info: PackedWeights, runner_config: MoeRunnerConfig, hooks: Any = None
    ) -> Any:
        if hooks is not None:
            raise NotImplementedError("LoRA over these experts; leave moe out of WELLHEAD_OPS")
        routed = dispatch_output.topk_output
        found = calls.experts(
            dispatch_output.hidden_states, routed.topk_ids, routed.topk_weights, quant_info, self.limit
        )
        return StandardCombineInput(hidden_states=found)
