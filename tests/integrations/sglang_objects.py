"""SGLang's own attention backend, pools, batches, experts and linear layer, at sizes that an interpreter stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from wellhead.formats import index_key, kv_record, ue8m0

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAGE, DIM, WINDOW = 256, 512, 128
PLACES = ("moe_ep_rank", "moe_ep_size", "moe_tp_rank", "moe_tp_size", "tp_rank", "tp_size")
RATIOS = (0, 4, 128)  # layer 0: the window alone; layer 1: chosen entries; layer 2: all entries of 128


class Attention:
    """`DeepseekV4AttnBackend` over `DeepSeekV4TokenToKVPool`, with random records behind every request of a batch.

    SGLang's own unit-test runner makes both; its pools' stores write the records.
    """

    def __init__(self, prefix: tuple[int, ...], extend: tuple[int, ...] = (), heads: int = 8):
        from sglang.srt.layers.attention import deepseek_v4_backend
        from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
        from sglang.srt.layers.radix_attention import RadixAttention
        from sglang.srt.model_executor.forward_batch_info import ForwardMode
        from sglang.test.kits.attention_unittest.attention_methods import dsv4_attention as kit

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

    def fill(self) -> None:
        """Random records and index keys in every slot of every pool."""
        for layer, ratio in enumerate(RATIOS):
            pools = [self.pool.swa_kv_pool.kv_buffer[layer]]
            if ratio:
                pools.append(self.pool.get_extra_key_buffer(layer).view(torch.uint8))
            for cache in pools:
                slots = torch.arange(len(cache) * kv_record.LAYOUT.page_size(cache), device=DEVICE)
                kv_record.write(cache, slots, torch.randn(len(slots), DIM, device=DEVICE).bfloat16())
        cache = self.pool.get_index_k_with_scale_buffer(1)
        keys = torch.randn(64 * len(cache), index_key.DIM, device=DEVICE)
        index_key.write_fp8(cache, torch.arange(len(keys), device=DEVICE), keys)

    def choose_some(self) -> None:
        """Slots of layer 1 as an indexer would leave them: some of the entries there are, then -1."""
        meta = self.backend.forward_metadata.core_metadata
        out, lengths = meta.c4_sparse_page_indices, meta.c4_sparse_topk_lengths
        entries = len(self.pool.get_extra_key_buffer(1)) * 64
        out.copy_(torch.randint(entries, out.shape, device=DEVICE))
        out[torch.arange(out.shape[1], device=DEVICE) >= lengths.view(-1, 1)] = -1

    def index_query(self, heads: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """(codes E4M3 [T, H, 128], weights fp32 [T, H] with the query's scale in them)."""
        codes, scale = index_key.quantize_fp8(torch.randn(self.tokens, heads, index_key.DIM, device=DEVICE))
        return codes, torch.randn(self.tokens, heads, device=DEVICE) * (128 * 64) ** -0.5 * scale

    def run_indexer(self, codes: torch.Tensor, weights: torch.Tensor) -> None:
        """SGLang's `forward_c4_indexer` behind its query projection, whose result is given."""
        given = SimpleNamespace(
            use_fp4_indexer=False, layer_id=1, index_topk=512, compressor=None,
            compute_weights=lambda x, skip_scale=False: weights, weight_scale=1.0,
            compute_q=lambda *_: (codes, weights.unsqueeze(-1)),
        )  # fmt: skip
        rows = torch.zeros(self.tokens, 1, device=DEVICE)
        self.backend.forward_c4_indexer(rows, rows, given, self.batch, skip_compressor=True)


def _batch(kit: Any, case: Any, runner: Any, longest: int) -> Any:
    """The kit's batch with page-aligned requests, as the allocator hands out pages; page 0 is padding."""
    kit._token_loc = lambda req_idx, pos, *, max_context_len: PAGE + req_idx * longest + pos
    return kit._make_forward_batch(case, runner, max_context_len=longest, device=DEVICE)


def experts_layer(experts: int, d: int, m: int, top_k: int, limit: float) -> Any:
    """SGLang's `FusedMoE` of MXFP4 experts under its `Fp8Config`."""
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE

    with torch.device(DEVICE), alone():
        return FusedMoE(
            num_experts=experts, hidden_size=d, intermediate_size=m, layer_id=0, top_k=top_k,
            params_dtype=torch.bfloat16, quant_config=fp8_config(True), swiglu_limit=limit, reduce_results=False,
        )  # fmt: skip


def run_experts(layer: Any, x: torch.Tensor, routed: Any) -> torch.Tensor:
    with alone():
        found: torch.Tensor = layer(x, routed)
    return found


def plain_experts(count: int, w1: torch.Tensor, w3: torch.Tensor, w2: torch.Tensor) -> Any:
    """What SGLang's `moe_forward_native` reads of a layer of unpacked weights."""
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig

    config = MoeRunnerConfig(num_experts=count, activation="silu")
    return SimpleNamespace(num_experts=count, w13_weight=torch.cat((w1, w3), 1), w2_weight=w2, moe_runner_config=config)


def linear_layer(weight: torch.Tensor, scale: torch.Tensor) -> Any:
    """SGLang's `ReplicatedLinear` under its `Fp8Config`, loaded and finished: (layer, its method)."""
    from sglang.srt.layers.linear import ReplicatedLinear

    n, k = weight.shape
    with torch.device(DEVICE), alone():
        layer = ReplicatedLinear(k, n, bias=False, quant_config=fp8_config(), params_dtype=torch.bfloat16)
        layer.weight.data.copy_(weight)
        layer.weight_scale_inv.data.copy_(ue8m0.decode(scale))
        layer.quant_method.process_weights_after_loading(layer)
    return layer


@contextmanager
def alone() -> Iterator[None]:
    """One rank, in SGLang's words."""
    from sglang.srt.runtime_context import get_parallel

    places: dict[str, Any] = {name: 0 if name.endswith("rank") else 1 for name in PLACES}
    with get_parallel().override(**places, tp_group=SimpleNamespace(world_size=1)):
        yield


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
