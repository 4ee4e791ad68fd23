"""SGLang's own attention backend, pools, batches, expert layer and linear layer, at sizes that an interpreter stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAGE, DIM, WINDOW = 256, 512, 128
PLACES = ("moe_ep_rank", "moe_ep_size", "moe_tp_rank", "moe_tp_size", "tp_rank", "tp_size")
RATIOS = (0, 4, 128)  # layer 0: the window alone; layer 1: chosen entries; layer 2: all entries of 128


class Attention:
    """`DeepseekV4AttnBackend` over `DeepSeekV4TokenToKVPool`, with random records behind every request of a batch.

    SGLang's own unit-test runner makes both; its pools' stores write the records.
    """

    def __init__(self, prefix: tuple[int, ...], extend: tuple[int, ...] = (), heads: int = 8):
        from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
        from sglang.srt.layers.radix_attention import RadixAttention
        from sglang.srt.model_executor.forward_batch_info import ForwardMode
        from sglang.test.kits.attention_unittest.attention_methods import dsv4_attention as kit

        from sglang.srt.layers.attention import deepseek_v4_backend

        # its plan for the compressor's CUDA kernel, which no test here runs
        deepseek_v4_backend.create_paged_compressor_data = lambda *given, **named: None
        torch.manual_seed(7)
        mode = ForwardMode.EXTEND if extend else ForwardMode.DECODE
        self.case = kit.DSV4AttentionCase(
            name="ours", backend="dsv4", forward_mode=mode, num_heads=heads, page_size=PAGE, prefix_lens=prefix,
            extend_lens=extend,
        )  # fmt: skip
        longest = -(-max(self.case.seq_lens) // PAGE) * PAGE
        config = kit.TinyDSV4ModelConfig(num_heads=heads, context_len=longest, compression_ratios=list(RATIOS))
        self.runner = kit.MockDSV4ModelRunner(
            case=self.case, model_config=config, dtype=torch.bfloat16, device=DEVICE, max_context_len=longest,
            swa_size=PAGE * (2 + len(prefix) * longest // PAGE), compression_ratios=list(RATIOS),
        )  # fmt: skip
        self.pool = self.runner.token_to_kv_pool
        self.backend = ATTENTION_BACKENDS["dsv4"](self.runner)
        self.batch = _batch(kit, self.case, self.runner, longest)
        self.backend.init_forward_metadata(self.batch)
        self.heads, self.tokens = heads, self.case.num_input_tokens
        self.sink = torch.randn(heads, device=DEVICE)
        self.layers = [
            RadixAttention(heads, DIM, DIM**-0.5, num_kv_heads=1, layer_id=layer, v_head_dim=DIM).to(DEVICE)
            for layer in range(len(RATIOS))
        ]

    def forward(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """The backend's own `forward`: q bf16 [T, H, 512] -> bf16 [T, H, 512]; the records are there already."""
        same = q.new_empty(0)
        found: torch.Tensor = self.backend.forward(
            q=q, k=same, v=same, layer=self.layers[layer], forward_batch=self.batch, compress_ratio=RATIOS[layer],
            save_kv_cache=False, attn_sink=self.sink,
        )  # fmt: skip
        return found


def _batch(kit: Any, case: Any, runner: Any, longest: int) -> Any:
    """The kit's batch with page-aligned requests, as the allocator hands out pages; page 0 is padding."""
    kit._token_loc = lambda req_idx, pos, *, max_context_len: PAGE + req_idx * longest + pos
    return kit._make_forward_batch(case, runner, max_context_len=longest, device=DEVICE)


def experts_layer(experts: int, d: int, m: int, top_k: int, limit: float) -> Any:
    """SGLang's `FusedMoE` of MXFP4 experts under its `Fp8Config`."""
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
    from sglang.srt.runtime_context import get_parallel

    alone = {name: 0 if name.endswith("rank") else 1 for name in PLACES}
    with torch.device(DEVICE), get_parallel().override(**alone):
        return FusedMoE(
            num_experts=experts, hidden_size=d, intermediate_size=m, layer_id=0, top_k=top_k,
            params_dtype=torch.bfloat16, quant_config=fp8_config(True), swiglu_limit=limit, reduce_results=False,
        )  # fmt: skip


def fp8_config(experts: bool = False) -> Any:
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    config = Fp8Config(
        is_checkpoint_fp8_serialized=True, activation_scheme="dynamic", weight_block_size=[128, 128],
        is_fp4_experts=experts,
    )  # fmt: skip
    config.scale_fmt = "ue8m0"
    return config


def decoder_layer(d: int) -> Any:
    """What SGLang's `DeepseekV4DecoderLayerBase` reads of itself in its hyper-connections."""
    from sglang.srt.models import deepseek_v4_mhc as mhc
    from sglang.srt.models.deepseek_v4 import DeepseekV4DecoderLayerBase

    layer = DeepseekV4DecoderLayerBase.__new__(DeepseekV4DecoderLayerBase)
    torch.nn.Module.__init__(layer)
    layer.hc_mult, layer.hc_sinkhorn_iters, layer.hc_eps, layer.rms_norm_eps = 4, 20, 1e-6, 1e-6
    layer.hc_cfg = mhc.HcConfig(4, 20, 1e-6, 1e-6, d, False, False)
    return layer


def norm(d: int) -> Any:
    weight = (1 + 0.1 * torch.randn(d, device=DEVICE)).bfloat16()
    return SimpleNamespace(weight=torch.nn.Parameter(weight, requires_grad=False), variance_epsilon=1e-6)
